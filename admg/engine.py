"""The engine: continuous batching with self-speculation, one loop.

Each `step` is one round: admit -> prefill -> draft -> verify -> commit -> retire. Plain decoding
is the same loop with an empty draft. A retired sequence's place is refilled in the next round.

The engine knows token ids; text enters only through the `detokenize` callable (stop strings and
the completion's text).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from dataclasses import replace

from admg.config import DraftConfig, EngineConfig
from admg.cuda_graphs import GraphReport
from admg.device_rounds import plays_whole, rounds_of
from admg.drafters.self_draft import SelfDrafter
from admg.drafting import Drafted, Drafting
from admg.explanation import Explanation
from admg.invariants import check_commit
from admg.kv_arena import KVArena
from admg.learned import Learned
from admg.limits import Limits
from admg.model import Transformer
from admg.pass_cost import DRAFTED, PassCost
from admg.plan import DraftPlan, check_layers
from admg.prefill import prefill_pass
from admg.prefix_cache import PrefixCache
from admg.prompt_store import PromptStore
from admg.request import Completion, FinishReason, Request
from admg.rescoring import Rescoring
from admg.sampling import Sampler
from admg.scheduler import Chunk, Scheduler
from admg.sequence import Sequence
from admg.stats import EngineCounters, SequenceStats
from admg.stopping import Detokenize, commit, final_text
from admg.warm_up import WarmUp, usual_plan
from admg.workspace import engine_size
from admg.yardstick import plain_seconds

# Every so many rounds one is plain, so that the yardstick of the speedup stays fresh.
PLAIN_EVERY = 64
# And the first ones are, before anything is chosen by costs: a warm-up among a job's other
# beginnings can come out several times too slow, by which all drafts would look cheap.
FIRST_PLAIN = 3
NO_DRAFT = DraftConfig(drafter="none")
# So many waiting prompts decide what the shared prefix is.
PREFIX_OF = 256


class Engine:
    """Decodes a continuously refilled batch.

    Args:
        model: the target, whose sub-networks draft.
        config: sizes and drafting.
        eos_token_ids: tokens that end a sequence unless it asks to ignore them.
        detokenize: token ids to text; needed for stop strings and for `Completion.text`.
        prompts: what other engines on this model have prefilled, and may be given.

    Raises:
        ValueError: a configuration that this model cannot serve, by field and value.
    """

    def __init__(
        self,
        model: Transformer,
        config: EngineConfig,
        *,
        eos_token_ids: Seq[int],
        detokenize: Detokenize | None = None,
        prompts: PromptStore | None = None,
    ) -> None:
        check_layers(config.draft, model.config.num_layers)
        size = engine_size(model, config)
        self._model = model
        self._config = config
        self._draft = config.draft
        self._detokenize = detokenize
        spare = plays_whole(config, model.device)
        self._arena = KVArena(model.config, size.num_slots, model.dtype, model.device, spare=spare)
        self._prefixes = PrefixCache(model, self._arena, config, prompts)
        self._arrived = False
        self._limits = Limits(
            model.config.vocab_size,
            size.max_model_len,
            self._arena.num_slots,
            detokenize is not None,
        )
        self._sampler = Sampler(model.config.vocab_size, model.device)
        self._scheduler = Scheduler(config, self._arena, frozenset(eos_token_ids))
        shared = (model, self._arena, self._sampler)
        self._rescoring = Rescoring(*shared, self._scheduler, config.prefill_tokens)
        self._by_rejection = config.draft.by_rejection
        sizes = (config.max_num_seqs, size.max_model_len, self._arena.num_slots)
        self._chooses = config.draft.drafter == "auto"
        self._cost = PassCost.for_engine(*sizes, DRAFTED if self._chooses else (1,))
        shares = config.draft.window_shares or (0.0,)
        self._own_costs = {
            share: PassCost.for_engine(*sizes, machine=self._cost) for share in shares
        }
        self._drafting: Drafting | None = None
        if config.draft.drafter != "none":
            self._drafting = Drafting(*shared, config, self._cost, self._own_costs)
        self._way = rounds_of(*shared, config, self._cost)
        self._unwatched = replace(NO_DRAFT, verification=config.draft.verification)
        self._rejected: list[Completion] = []
        self._handles = 0
        self._rounds = 0
        self._counters = EngineCounters()

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        waiting = self._scheduler.num_waiting or self._rescoring.waiting
        return bool(waiting or self._scheduler.running or self._rejected)

    @property
    def counters(self) -> EngineCounters:
        """Sums so far, and the sequences that run and wait now."""
        return replace(
            self._counters,
            num_running=len(self._scheduler.running),
            num_waiting=self._scheduler.num_waiting,
            num_slots=self._arena.num_slots,
            num_slots_used=self._arena.num_used,
        )

    @property
    def graphs(self) -> GraphReport | None:
        """What has become of the rounds on the device; None where the host plays them."""
        return self._way.report

    def explain(self) -> Explanation | None:
        """What the drafter "auto" goes by, and what it has chosen; None for the others."""
        return None if self._drafting is None else self._drafting.explain()

    def submit(self, request: Request) -> int:
        """Queue a sequence; its problems, if any, come back as an error completion.

        Returns:
            The handle that its `Completion` will carry.
        """
        handle = self._handles
        self._handles += 1
        problem = self._limits.problem(request)
        if problem is None and request.forced:
            self._rescoring.add(handle, request)
        elif problem is None:
            self._scheduler.add(handle, request)
            self._arrived = True
        else:
            stats = SequenceStats(prompt_tokens=len(request.prompt_token_ids))
            self._rejected.append(Completion.failed(handle, request.key, stats, *problem))
        return handle

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Completions of the requests, as they finish."""
        for request in requests:
            self.submit(request)
        while self.has_work:
            yield from self.step()

    def step(self) -> list[Completion]:
        """One round; returns the sequences that it finished."""
        if self._drafting is not None and not self._cost.measured and not self._scheduler.running:
            self._warm_up(self._drafting)
        done, self._rejected = self._rejected, []
        self._admit()
        while chunks := self._scheduler.next_chunks():
            done += self._prefill(chunks)
        if decoding := self._scheduler.decoding():
            done += self._round(decoding)
        return done + self._rescoring.run()

    def _admit(self) -> None:
        start = time.perf_counter()
        if self._arrived:
            self._prefixes.learn(self._scheduler.waiting_prompts(PREFIX_OF))
            self._arrived = False
        for s in self._scheduler.admit():
            spared = self._prefixes.fill(s)
            self._counters.prompt_tokens += s.computed
            self._counters.num_cached_tokens += spared
        self._counters.prefill_seconds += time.perf_counter() - start

    def _prefill(self, chunks: list[Chunk]) -> list[Completion]:
        done = []
        start = time.perf_counter()
        self._choose_share()
        draft = self._draft
        watched = draft if any(c.sequence.request.draft for c in chunks) else NO_DRAFT
        ready = prefill_pass(self._model, self._arena, self._sampler, chunks, watched)
        self._counters.prefill_seconds += time.perf_counter() - start
        self._counters.prompt_tokens += sum(c.count for c in chunks)
        for s, token in ready:
            if not s.request.draft or not draft.self_drafts:
                # Else verification would go on learning, from what a shared prefix has taught.
                s.learned, s.similarity, s.units = Learned(), (), None
            if s.request.draft and self._drafting is not None:
                self._drafting.begin(s, draft)
            reason = self._commit(s, [token] if token is not None else None)[1]
            if reason is not None:
                done.append(self._retire(s, reason))
        return done

    def _round(self, sequences: list[Sequence]) -> list[Completion]:
        start = time.perf_counter()
        self._rounds += 1
        context = sum(len(s.tokens) for s in sequences) / len(sequences)
        plain = self._rounds % PLAIN_EVERY == 0 or (self._chooses and self._rounds <= FIRST_PLAIN)
        drafting = self._drafting if any(s.request.draft for s in sequences) else None
        drafted = Drafted.nothing(len(sequences))
        if drafting is not None:
            drafted = drafting.open(sequences, context, plain)
        opening = time.perf_counter() - start if drafting is not None else 0.0
        # Plain is plain: where the controller drafts nothing of the model's own, nobody learns.
        idle = plain or (self._chooses and not any(drafted.choice.own))
        config = self._unwatched if idle else self._draft
        played = self._way.play(sequences, drafted, drafting, context, config)
        draft, verdicts = drafted.draft, played.verdicts
        self._counters.draft_seconds += played.draft_seconds
        self._counters.verify_seconds += played.verify_seconds
        outcomes = [self._commit(s, v.tokens) for s, v in zip(sequences, verdicts, strict=True)]
        seconds = time.perf_counter() - start
        step = seconds
        if self._drafting is not None:
            told = idle or self._draft.windows is None
            step = plain_seconds(self._cost, draft, context, seconds - opening, told)
        done = []
        for i, (s, verdict) in enumerate(zip(sequences, verdicts, strict=True)):
            count, reason = outcomes[i]
            accepted = min(len(verdict.accepted), count)
            proposed = len(draft.tokens[i])
            s.tally.count_step(accepted, draft.sources[i], count, seconds, step)
            self._counters.count_step(proposed, accepted)
            if s.exit is not None:
                own = draft.drafted(i, SelfDrafter.source)
                s.exit.update(own, min(accepted, own), s.plan.draft_tokens if s.plan else own)
            if drafting is not None and count:
                drafting.learn(s, drafted, i, s.tokens[-count:], accepted)
            if reason == "error" and proposed:
                # The draft's fault, perhaps: plain decoding must not have to pay for it.
                s.plan = DraftPlan((), 0)
                self._arena.clear(s.extent, s.computed)
            elif reason is not None:
                done.append(self._retire(s, reason))
        if drafting is not None and not plain:
            drafting.end_round(sum(count for count, _ in outcomes), seconds)
        return done

    def _commit(self, s: Sequence, tokens: list[int] | None) -> tuple[int, FinishReason | None]:
        """Append verified tokens to a sequence; None means that the model's output was broken."""
        if tokens is None:
            return 0, "error"
        count, reason = commit(s, tokens, self._detokenize)
        self._counters.completion_tokens += count
        s.computed = len(s.tokens) - 1
        s.salt += self._by_rejection
        if self._config.check:
            check_commit(s)
        return count, reason

    def _retire(self, s: Sequence, reason: FinishReason) -> Completion:
        if reason == "error":
            self._arena.clear(s.extent)
        self._scheduler.retire(s)
        stats = s.stats(None if self._drafting is None else self._drafting.kv_saved(s))
        if reason == "error":
            message = "the model's output is not finite (NaN or infinity) for this prompt"
            code = "model_output_invalid"
            return Completion.failed(s.handle, s.request.key, stats, code, message)
        if self._drafting is not None and s.request.draft:
            self._drafting.finish(s)
        text = final_text(s, self._detokenize) if self._detokenize is not None else None
        return Completion(s.handle, s.request.key, s.completion, reason, stats, text=text)

    def _warm_up(self, drafting: Drafting) -> None:
        sizes = (self._model.config.num_layers, self._model.config.num_kv_heads)
        plan = usual_plan(self._draft, *sizes)
        timed = WarmUp(self._scheduler, self._way, drafting, self._draft, plan)
        self._way.prepare(self._cost.sizes, self._cost.tokens)
        self._cost.warm_up(timed.target_pass)
        if self._chooses:
            for share, cost in self._own_costs.items():
                timed.plan = usual_plan(self._draft.with_share(share), *sizes)
                cost.warm_up(timed.own_pass)
            if not drafting.own_may_pay(self._draft.draft_tokens):
                self._draft = self._draft.without_own()

    def _choose_share(self) -> None:
        """For the plans that are made now; those that there are stay as they are."""
        free, running = self._config.draft, self._scheduler.running
        if self._drafting is None or not free.window_shares or not self._draft.self_drafts:
            return
        context = sum(s.prompt_length for s in running) / len(running)
        self._draft = free.with_share(self._drafting.window_share(len(running), context))
