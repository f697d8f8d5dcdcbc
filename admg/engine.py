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

from admg.config import EngineConfig, SamplingParams
from admg.drafters.confidence_exit import ConfidenceExit
from admg.drafters.self_draft import Draft, SelfDrafter
from admg.invariants import check_commit, check_round
from admg.kv_arena import KVArena
from admg.memory import arena_size
from admg.model import Transformer
from admg.plain_cost import NEW_TOKENS, PlainCost
from admg.plan import DraftPlan, choose_dropped
from admg.prefill import prefill_pass
from admg.request import Completion, FinishReason, Request
from admg.sampling import Sampler
from admg.scheduler import Chunk, Scheduler
from admg.sequence import Sequence
from admg.stats import EngineCounters, SequenceStats
from admg.stopping import Detokenize, commit, final_text
from admg.verification import verify

# Every so many rounds one is plain, so that the yardstick of the speedup stays fresh.
PLAIN_EVERY = 64


class Engine:
    """Decodes a continuously refilled batch.

    Args:
        model: the target, whose sub-networks draft.
        config: sizes and drafting.
        eos_token_ids: tokens that end a sequence unless it asks to ignore them.
        detokenize: token ids to text; needed for stop strings and for `Completion.text`.

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
    ) -> None:
        size = arena_size(model, config)
        self._model = model
        self._config = config
        self._detokenize = detokenize
        self._max_model_len = size.max_model_len
        self._arena = KVArena(model.config, size.num_slots, model.dtype, model.device)
        self._sampler = Sampler(model.config.vocab_size, model.device)
        self._scheduler = Scheduler(config, self._arena, frozenset(eos_token_ids))
        self._by_rejection = config.draft.verification == "token"
        self._drafter: SelfDrafter | None = None
        if config.draft.drafter != "none":
            self._drafter = SelfDrafter(model, self._arena, self._sampler, self._by_rejection)
        self._cost = PlainCost.for_engine(
            config.max_num_seqs, size.max_model_len, self._arena.num_slots
        )
        self._rejected: list[Completion] = []
        self._handles = 0
        self._rounds = 0
        self._counters = EngineCounters()

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        waiting = self._scheduler.num_waiting
        return bool(waiting or self._scheduler.running or self._rejected)

    @property
    def counters(self) -> EngineCounters:
        """Sums so far, and the sequences that run and wait now."""
        return replace(
            self._counters,
            num_running=len(self._scheduler.running),
            num_waiting=self._scheduler.num_waiting,
        )

    def submit(self, request: Request) -> int:
        """Queue a sequence; its problems, if any, come back as an error completion.

        Returns:
            The handle that its `Completion` will carry.
        """
        handle = self._handles
        self._handles += 1
        problem = self._problem(request)
        if problem is None:
            self._scheduler.add(handle, request)
        else:
            code, message = problem
            stats = SequenceStats(prompt_tokens=len(request.prompt_token_ids))
            self._rejected.append(
                Completion(
                    handle, request.key, [], "error", stats, error_code=code, error_message=message
                )
            )
        return handle

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        """Completions of the requests, as they finish."""
        for request in requests:
            self.submit(request)
        while self.has_work:
            yield from self.step()

    def step(self) -> list[Completion]:
        """One round; returns the sequences that it finished."""
        if self._drafter is not None and not self._cost.measured and not self._scheduler.running:
            self._cost.warm_up(self._time_plain_step)
        done, self._rejected = self._rejected, []
        self._scheduler.admit()
        while chunks := self._scheduler.next_chunks():
            done += self._prefill(chunks)
        if decoding := self._scheduler.decoding():
            done += self._round(decoding)
        return done

    def _prefill(self, chunks: list[Chunk]) -> list[Completion]:
        done = []
        draft = self._config.draft
        for s, token in prefill_pass(self._model, self._arena, self._sampler, chunks, draft):
            if self._drafter is not None:
                s.plan = DraftPlan(choose_dropped(s.similarity, draft.drop), draft.draft_tokens)
                if draft.exit_threshold is not None:
                    s.exit = ConfidenceExit(draft.exit_threshold)
            reason = self._commit(s, [token] if token is not None else None)[1]
            if reason is not None:
                done.append(self._retire(s, reason))
        return done

    def _round(self, sequences: list[Sequence]) -> list[Completion]:
        start = time.perf_counter()
        self._rounds += 1
        context = sum(len(s.tokens) for s in sequences) / len(sequences)
        draft = Draft.empty(len(sequences))
        plain = self._drafter is None or self._rounds % PLAIN_EVERY == 0
        if self._drafter is not None and not plain:
            draft = self._drafter.draft(sequences)
        if self._config.check:
            check_round(sequences, draft, self._arena, self._by_rejection)
        verdicts = verify(
            self._model, self._arena, self._sampler, sequences, draft, self._by_rejection
        )
        outcomes = [self._commit(s, v.tokens) for s, v in zip(sequences, verdicts, strict=True)]
        seconds = time.perf_counter() - start
        plain_seconds = self._plain_seconds(len(sequences), context, seconds, plain)
        done = []
        for i, (s, verdict) in enumerate(zip(sequences, verdicts, strict=True)):
            count, reason = outcomes[i]
            accepted = min(len(verdict.accepted), count)
            drafted = len(draft.tokens[i])
            s.tally.count_step(accepted, drafted, count, draft.source, seconds, plain_seconds)
            self._count_round(drafted, accepted)
            if s.exit is not None:
                s.exit.update(drafted, accepted, s.plan.draft_tokens if s.plan else drafted)
            if reason == "error" and drafted:
                # The draft's fault, perhaps: plain decoding must not have to pay for it.
                s.plan = DraftPlan((), 0)
                self._arena.clear(s.extent, s.computed)
            elif reason is not None:
                done.append(self._retire(s, reason))
        return done

    def _commit(self, s: Sequence, tokens: list[int] | None) -> tuple[int, FinishReason | None]:
        """Append verified tokens to a sequence; None means that the model's output was broken."""
        if tokens is None:
            return 0, "error"
        count, reason = commit(s, tokens, self._detokenize)
        s.computed = len(s.tokens) - 1
        s.salt += self._by_rejection
        if self._config.check:
            check_commit(s)
        return count, reason

    def _retire(self, s: Sequence, reason: FinishReason) -> Completion:
        if reason == "error":
            self._arena.clear(s.extent)
        self._scheduler.retire(s)
        stats = s.stats()
        self._count_sequence(stats)
        if reason == "error":
            message = "the model's output is not finite (NaN or infinity) for this prompt"
            return Completion(
                s.handle,
                s.request.key,
                [],
                "error",
                stats,
                error_code="model_output_invalid",
                error_message=message,
            )
        text = final_text(s, self._detokenize) if self._detokenize is not None else None
        return Completion(s.handle, s.request.key, s.completion, reason, stats, text=text)

    def _plain_seconds(self, size: int, context: float, seconds: float, plain: bool) -> float:
        """What a plain step costs for this batch; the round itself where all rounds are plain."""
        if self._drafter is None:
            return seconds
        if plain:
            self._cost.observe(size, context, seconds)
        return self._cost.estimate(size, context)

    def _time_plain_step(self, size: int, context: int) -> float:
        """Seconds of a plain step over `size` made-up sequences of `context` tokens."""
        params = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True)
        request = Request([0] * context, params)
        start = time.perf_counter()
        placed = [self._scheduler.place(-1, request, start) for _ in range(size)]
        sequences = [s for s in placed if s is not None]
        start = time.perf_counter()
        empty = Draft.empty(len(sequences))
        verify(self._model, self._arena, self._sampler, sequences, empty, self._by_rejection)
        seconds = time.perf_counter() - start
        for s in sequences:
            self._scheduler.retire(s)
        return seconds

    def _problem(self, request: Request) -> tuple[str, str] | None:
        """Why a request cannot run: error code and message."""
        prompt, new = len(request.prompt_token_ids), request.sampling.max_tokens
        if not prompt:
            return "prompt_empty", "the prompt has no tokens"
        vocab = self._model.config.vocab_size
        if not all(0 <= t < vocab for t in request.prompt_token_ids):
            return "bad_parameter", f"a prompt token id lies outside the vocabulary of {vocab}"
        if not all(0 <= t < vocab for t in request.sampling.stop_token_ids):
            return "bad_parameter", f"a stop token id lies outside the vocabulary of {vocab}"
        if request.sampling.stop and self._detokenize is None:
            return "bad_parameter", "stop strings need an engine with a detokenizer"
        if prompt + new > self._max_model_len:
            return (
                "prompt_too_long",
                f"{prompt} prompt tokens and {new} new ones exceed the longest sequence, "
                f"{self._max_model_len} tokens",
            )
        if not self._arena.fits(prompt + new):
            return (
                "prompt_too_long",
                f"{prompt} prompt tokens and {new} new ones exceed the KV budget of "
                f"{self._arena.num_slots} tokens",
            )
        return None

    def _count_round(self, drafted: int, accepted: int) -> None:
        self._counters.num_spec_steps += 1
        self._counters.num_draft_tokens += drafted
        self._counters.num_accepted_draft_tokens += accepted

    def _count_sequence(self, stats: SequenceStats) -> None:
        self._counters.prompt_tokens += stats.prompt_tokens
        self._counters.completion_tokens += stats.completion_tokens
