"""Passes over made-up sequences, timed: what costs are known by before the first real round."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from admg.config import DraftConfig, SamplingParams
from admg.drafters.draft import Draft
from admg.drafting import Drafting
from admg.plan import DraftPlan
from admg.request import Request
from admg.rounds import Rounds
from admg.scheduler import Scheduler
from admg.sequence import Sequence


class WarmUp:
    """Times the passes of one engine while nothing runs in it.

    Args:
        scheduler: gives the made-up sequences their extents.
        rounds: times single passes.
        drafting: whose self-drafts are timed.
        config: how drafts are made.
        plan: of the made-up sequences.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        rounds: Rounds,
        drafting: Drafting,
        config: DraftConfig,
        plan: DraftPlan,
    ) -> None:
        self._scheduler = scheduler
        self._rounds = rounds
        self._drafting = drafting
        self._config = config
        self.plan = plan

    def target_pass(self, size: int, context: int, tokens: int) -> float:
        """Seconds of a target pass over `size` sequences, `tokens` of each."""
        with self._sequences(size, context, tokens) as sequences:
            draft = Draft.empty(len(sequences))
            for i in range(len(sequences)):
                draft.add(i, [0] * (tokens - 1), "none")
            return self._rounds.time_target(sequences, draft, self._config)

    def own_pass(self, size: int, context: int, tokens: int) -> float:
        """Seconds of a self-draft pass; `tokens` is 1."""
        with self._sequences(size, context, tokens) as sequences:
            return self._rounds.time_own(sequences, self._drafting)

    @contextmanager
    def _sequences(self, size: int, context: int, tokens: int) -> Iterator[list[Sequence]]:
        params = SamplingParams(max_tokens=tokens + 1, ignore_eos=True)
        request = Request([0] * context, params)
        now = time.perf_counter()
        placed = [self._scheduler.place(-1, request, now) for _ in range(size)]
        sequences = [s for s in placed if s is not None]
        for s in sequences:
            s.plan = self.plan
        try:
            yield sequences
        finally:
            for s in sequences:
                self._scheduler.retire(s)


def usual_plan(draft: DraftConfig, num_layers: int, kv_heads: int) -> DraftPlan:
    """A plan that drops and limits as much as is asked for.

    Where that depends on the prompt, a quarter of the layers and half of the units.
    """
    drop, windows = draft.drop, draft.windows
    if drop.threshold is not None:
        drop = replace(drop, threshold=None, quantile=0.25)
    if windows is not None and (windows.threshold is not None or windows.share == "auto"):
        windows = replace(windows, threshold=None, share=0.5)
    alike = [1.0] * num_layers
    own = replace(draft, drop=drop, windows=windows, drafter="admg", draft_tokens=1)
    plan = DraftPlan.of(alike, own)
    return plan.limited([[1.0] * kv_heads] * num_layers, windows)
