"""Sets of sub-layers that no similarity chooses: drawn at random for a row, or searched for.

They are what choosing by similarity has to be compared with. A set says what a draft leaves out,
never what is committed, so completions are the same with any of them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from admg.draft_rules import LayerSets, SearchedSets
from admg.noise import position_key, stream


@dataclass(frozen=True, slots=True)
class LayerSet:
    """The layers whose attention and whose MLP a draft leaves out, both ascending."""

    attention: tuple[int, ...]
    mlps: tuple[int, ...] = ()


def drawn(rule: LayerSets, num_layers: int, key: str) -> LayerSet:
    """A set of the rule's size, by its seed and `key` alone; all sets are equally likely.

    Raises:
        ValueError: the model has too few layers for it.
    """
    layers = rule.allowed(num_layers)
    base = stream(rule.seed, key)
    # What orders the layers for one kind says nothing about the other.
    by_kind = [sorted(layers, key=lambda i: position_key(base, i, kind)) for kind in (0, 1)]
    attention, mlps = by_kind
    return LayerSet(tuple(sorted(attention[: rule.attention])), tuple(sorted(mlps[: rule.mlps])))


@dataclass(slots=True)
class _Score:
    accepted: float = 0.0
    judged: float = 0.0

    @property
    def share(self) -> float:
        return self.accepted / self.judged if self.judged else 0.0


class LayerSearch:
    """The set that an engine drafts with now: the best so far and a trial, turn by turn.

    SWIFT's idea (arXiv 2410.06916) in the form that `SearchedSets` describes. The best set drafts
    between two trials, so that its score does not rest on the one lucky trial that made it best.

    Args:
        rule: sizes and how to search.
        num_layers: of the model.
    """

    def __init__(self, rule: SearchedSets, num_layers: int) -> None:
        self._rule, self._layers = rule, num_layers
        self._random = random.Random(rule.seed)
        self.best = drawn(rule, num_layers, "0")
        self.trials = 0
        self._trial: LayerSet | None = None
        self._best, self._now = _Score(), _Score()

    @property
    def current(self) -> LayerSet:
        """What the next drafts leave out."""
        return self.best if self._trial is None else self._trial

    @property
    def ended(self) -> bool:
        """Whether the best set stays from now on."""
        rule = self._rule
        return self.trials >= rule.max_trials or (
            self._best.judged > 0 and self._best.share >= rule.good_enough
        )

    def see(self, accepted: int, judged: int) -> None:
        """Take in what became of drafts of the current set."""
        self._now.accepted += accepted
        self._now.judged += judged

    def end_round(self) -> None:
        """Between two rounds: go on to another set where enough is known of this one."""
        if self._now.judged < self._rule.trial_tokens or (self._trial is None and self.ended):
            return
        now, self._now = self._now, _Score()
        if self._trial is None:
            # Text changes: what the best set did before counts half as much as what it does now.
            before = self._best
            self._best = _Score(now.accepted + before.accepted / 2, now.judged + before.judged / 2)
            if not self.ended:
                self._trial = self._next()
                self.trials += 1
            return
        if now.share > self._best.share:
            self.best, self._best = self._trial, now
        self._trial = None

    def _next(self) -> LayerSet:
        if self._random.random() < self._rule.explore:
            return drawn(self._rule, self._layers, str(self.trials + 1))
        allowed = self._rule.allowed(self._layers)
        moves = [
            (kind, out, into)
            for kind in ("attention", "mlps")
            for out in getattr(self.best, kind)
            for into in allowed
            if into not in getattr(self.best, kind)
        ]
        if not moves:  # there is one set of this size alone
            return self.best
        kind, out, into = self._random.choice(moves)
        changed = tuple(sorted({*getattr(self.best, kind)} - {out} | {into}))
        return replace(self.best, **{kind: changed})
