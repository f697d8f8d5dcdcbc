"""Which layers a round leaves out for everybody: few classes, since each is captured on its own."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from admg.device_round import PlanClass
from admg.plan import DraftPlan

# Sets of dropped layers that rounds are made for at a time; a further one is served by the largest
# within it.
MOST_CLASSES = 4
# Where all are taken, a further set takes the place of the one that was not asked for the longest
# once it has come in so many rounds: what batches have in common by chance comes and goes.
PATIENCE = 8

_Set = tuple[tuple[int, ...], tuple[int, ...]]
_NOTHING: _Set = ((), ())


class PlanClasses:
    """The classes of one engine, learned from the plans that come."""

    def __init__(self) -> None:
        self._known: list[_Set] = []  # the latest one last; that nothing is dropped is always known
        self._waiting: tuple[_Set, int] = (_NOTHING, 0)

    def of(self, plans: Seq[DraftPlan], *, exits: bool) -> PlanClass:
        """The class that serves these plans: what all of them drop, or part of it."""
        dropped = set.intersection(*(set(p.dropped) for p in plans)) if plans else set()
        mlps = set.intersection(*(set(p.dropped_mlps) for p in plans)) if plans else set()
        common = self._serving((tuple(sorted(dropped)), tuple(sorted(mlps))))
        return PlanClass(
            *common,
            masked=any((p.dropped, p.dropped_mlps) != common for p in plans),
            limited=any(p.windowed for p in plans),
            exits=exits,
        )

    def _serving(self, wanted: _Set) -> _Set:
        """The set itself if it is known or worth it by now, else the largest known one within."""
        if wanted == _NOTHING:
            return wanted
        if wanted not in self._known and not self._admits(wanted):
            fitting = [k for k in self._known if _within(k, wanted)]
            return max(fitting, key=lambda k: len(k[0]) + len(k[1]), default=_NOTHING)
        self._known = [*(k for k in self._known if k != wanted), wanted][-MOST_CLASSES:]
        return wanted

    def _admits(self, wanted: _Set) -> bool:
        before, times = self._waiting
        self._waiting = (wanted, times + 1 if wanted == before else 1)
        return len(self._known) < MOST_CLASSES or self._waiting[1] >= PATIENCE


def _within(one: _Set, other: _Set) -> bool:
    return set(one[0]) <= set(other[0]) and set(one[1]) <= set(other[1])
