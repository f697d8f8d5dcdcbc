"""Who drafts in a round: the configured drafter, or the one that the controller picks."""

from __future__ import annotations

import time
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

from admg.config import DraftConfig, EngineConfig
from admg.controller import STAGGERED, Choice, Controller
from admg.draft_rules import SearchedSets
from admg.drafters.confidence_exit import ExitStart
from admg.drafters.draft import Draft
from admg.drafters.ngram import NgramDrafter, Proposal
from admg.drafters.self_draft import SelfDrafter
from admg.explanation import Explanation
from admg.kv_arena import KVArena
from admg.layer_sets import LayerSearch
from admg.model import Transformer
from admg.pass_cost import PassCost
from admg.plan import DraftPlan
from admg.sampling import Sampler
from admg.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Drafted:
    """A round's drafts, and what lookup would have proposed, for the controller to learn from.

    `choice` says how long the drafts may be that are to be filled in.
    """

    draft: Draft
    proposals: list[Proposal | None]
    choice: Choice

    @classmethod
    def nothing(cls, count: int) -> Drafted:
        """A plain round that nobody looks at."""
        return cls(Draft.empty(count), [None] * count, Choice.plain(count))

    def part(self, rows: Seq[int]) -> Drafted:
        """Of some of the sequences; their drafts are still drafts of the round."""
        lookup, own = self.choice.lookup, self.choice.own
        choice = Choice([lookup[i] for i in rows], [own[i] for i in rows])
        return Drafted(self.draft.part(rows), [self.proposals[i] for i in rows], choice)


class Drafting:
    """The drafters of one engine.

    Args:
        model, arena, sampler: the engine's own.
        config: `config.draft.drafter` is not "none".
        cost: of target passes.
        own_costs: of self-draft passes, by the share of KV heads that they limit; used by the
            controller alone.
    """

    def __init__(
        self,
        model: Transformer,
        arena: KVArena,
        sampler: Sampler,
        config: EngineConfig,
        cost: PassCost,
        own_costs: dict[float, PassCost],
    ) -> None:
        draft, keep_laws = config.draft, config.draft.by_rejection
        self._model = model
        self._own: SelfDrafter | None = None
        self._ngram: NgramDrafter | None = None
        if draft.self_drafts:
            window = draft.windows.window if draft.windows is not None else 0
            own = _own_model(model, draft)
            self._own = SelfDrafter(own, arena, sampler, keep_laws, window)
        self._tail, self._longest = draft.lookup_tail, draft.draft_tokens
        self._proposes = draft.drafter in ("ngram", "auto")
        if self._proposes or self._tail:
            store = draft.lookup_store_tokens if self._proposes else 0
            self._ngram = NgramDrafter(keep_laws, store)
        self._controller: Controller | None = None
        if draft.drafter == "auto":
            staggered = STAGGERED if model.device.type == "cpu" else 0.0
            self._controller = Controller(cost, own_costs, staggered)
        self._exits: ExitStart | None = None
        if draft.exit_threshold is not None:
            self._exits = ExitStart(draft.exit_threshold, draft.exit)
        self._search: LayerSearch | None = None
        if isinstance(draft.sets, SearchedSets):
            self._search = LayerSearch(draft.sets, model.config.num_layers)

    def begin(self, s: Sequence, draft: DraftConfig) -> None:
        """Give a sequence whose prompt is complete its plan, and its exit if drafts have one."""
        s.plan = DraftPlan.of(s.similarity, draft, s.units, s.request.key)
        s.exit = None if self._exits is None else self._exits.begin()

    def open(self, sequences: list[Sequence], context: float, plain: bool) -> Drafted:
        """A round without its drafts yet; `plain` forbids them, but not their proposals."""
        drafted = Drafted.nothing(len(sequences))
        if self._ngram is not None and self._proposes:
            drafted = replace(drafted, proposals=[self._ngram.propose(s) for s in sequences])
        if plain:
            return drafted
        drafted = replace(drafted, choice=self._choose(sequences, drafted.proposals, context))
        if self._own is not None and self._search is not None:
            _plan_anew(sequences, self._search)
        return drafted

    def draft(self, sequences: list[Sequence], drafted: Drafted, context: float) -> None:
        """The drafts of an opened round, pass by pass."""
        if self._own is not None:
            start = time.perf_counter()
            self._own.draft(sequences, drafted.choice.own, drafted.draft)
            self.observe_own(sequences, drafted.draft, context, time.perf_counter() - start)
            if self._ngram is not None and self._tail:
                self._ngram.continue_drafts(sequences, self._tail, drafted.draft)
        self.look_up(sequences, drafted)

    def look_up(self, sequences: list[Sequence], drafted: Drafted) -> None:
        """The part of the drafts that needs no pass."""
        if self._ngram is not None:
            choice = drafted.choice.lookup
            self._ngram.draft(sequences, drafted.proposals, choice, drafted.draft)

    def observe_own(
        self, sequences: list[Sequence], draft: Draft, context: float, seconds: float
    ) -> None:
        """Tell how long a round's self-drafts took, if there were any."""
        if self._controller is not None and any(draft.tokens):
            self._controller.observe_own(sequences, draft, context, seconds)

    @property
    def own_model(self) -> Transformer | None:
        """What self-drafts run through, where there are any."""
        return None if self._own is None else self._own.model

    def learn(
        self, s: Sequence, drafted: Drafted, i: int, committed: list[int], accepted: int
    ) -> None:
        """Tell what became of sequence i's draft: `accepted` of it, `committed` in all."""
        own = drafted.draft.drafted(i, SelfDrafter.source)
        seen = (min(accepted, own), min(accepted + 1, own)) if own else (0, 0)
        if self._search is not None:
            self._search.see(*seen)
        if self._controller is not None:
            self._controller.learn(s, drafted.proposals[i], committed, seen)

    def kv_saved(self, s: Sequence) -> float | None:
        """What `SequenceStats.draft_kv_saved` says of a sequence."""
        return None if self._own is None else self._own.kv_saved(s)

    def finish(self, s: Sequence) -> None:
        """Tell that a sequence has ended well."""
        if self._ngram is not None:
            self._ngram.keep(s)
        if self._exits is not None and s.exit is not None:
            self._exits.end(s.exit)

    def end_round(self, committed: int, seconds: float) -> None:
        """Tell how many tokens the round has committed in all, in so many seconds."""
        if self._search is not None:
            self._search.end_round()
        if self._controller is not None:
            self._controller.note(committed, seconds)

    def explain(self) -> Explanation | None:
        """What the choices rest on, where there are any."""
        return None if self._controller is None else self._controller.explain()

    def own_may_pay(self, most: int) -> bool:
        """Whether self-drafts of up to `most` tokens are worth preparing for; if not, none are.

        Costs are known. A drafter that was asked for by name is not questioned. The memory of
        smaller weights is given back.
        """
        if self._controller is not None and not self._controller.own_may_pay(most):
            self._own = None
            self._controller.own.clear()
            self._controller.released_bytes = self._model.release_low_bit()
        return self._own is not None

    def window_share(self, sequences: int, context: float) -> float:
        """The share of KV heads that plans made now should limit; the controller chooses it."""
        assert self._controller is not None
        return self._controller.window_share(sequences, context, self._longest)

    def draft_alone(self, sequences: list[Sequence]) -> None:
        """One self-draft pass, to be timed."""
        if self._own is not None:
            self._own.draft(sequences, [1] * len(sequences), Draft.empty(len(sequences)))

    def _choose(
        self, sequences: list[Sequence], proposals: list[Proposal | None], context: float
    ) -> Choice:
        if self._controller is not None:
            return self._controller.choose(sequences, proposals, context)
        limits, zeros = [s.draft_limit for s in sequences], [0] * len(sequences)
        return Choice(limits, zeros) if self._own is None else Choice(zeros, limits)


def _plan_anew(sequences: list[Sequence], search: LayerSearch) -> None:
    current = search.current
    for s in sequences:
        if s.plan is not None and s.plan.draft_tokens:
            plan = replace(s.plan, dropped=current.attention, dropped_mlps=current.mlps)
            # The same object as long as it says the same: who keeps copies knows it by that.
            s.plan = s.plan if plan == s.plan else plan


def _own_model(model: Transformer, draft: DraftConfig) -> Transformer:
    if draft.low_bit is None:
        return model
    if model.low_bit is None:
        raise ValueError(
            f"draft_weights is {draft.draft_weights!r}: it must be full, the model was loaded "
            "without smaller weights"
        )
    return model.low_bit
