"""Which layers a round leaves out for everybody: few classes, since each is captured on its own."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from admg.device_round import PlanClass
from admg.plan import DraftPlan

# Sets of dropped layers that rounds are made for; a further one is served by the largest within it.
MOST_CLASSES = 4


class PlanClasses:
    """The classes of one engine, learned from the plans that come."""

    def __init__(self) -> None:
        self._known: set[tuple[tuple[int, ...], tuple[int, ...]]] = {((), ())}

    def of(self, plans: Seq[DraftPlan], *, exits: bool) -> PlanClass:
        """The class that serves these plans: what all of them drop, or part of it."""
        dropped = set.intersection(*(set(p.dropped) for p in plans)) if plans else set()
        mlps = set.intersection(*(set(p.dropped_mlps) for p in plans)) if plans else set()
        common = (tuple(sorted(dropped)), tuple(sorted(mlps)))
        if common not in self._known and len(self._known) <= MOST_CLASSES:
            self._known.add(common)
        if common not in self._known:
            fitting = [k for k in self._known if dropped.issuperset(k[0]) and mlps.issuperset(k[1])]
            common = max(fitting, key=lambda k: len(k[0]) + len(k[1]))
        return PlanClass(
            *common,
            masked=any((p.dropped, p.dropped_mlps) != common for p in plans),
            limited=any(p.windowed for p in plans),
            exits=exits,
        )
