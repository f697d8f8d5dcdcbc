"""Where the running means of the sequences of a batch are kept on the device.

Shapes: P places, L layers, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace

from torch import Tensor

from admg.hole_filling import RunningMean
from admg.round_buffers import Means
from admg.sequence import Sequence


class Places:
    """Gives each sequence a place while it runs.

    What a sequence has learned stays its own `RunningMean`, whose sums are a view of its place: so
    whoever reads it reads what the last round has left there, and a mean that was made elsewhere
    shows by its address.

    Args:
        means: the sums by place; the last place is nobody's.
        places: how many there are.
        decay: weight of a token relative to the one after it.
    """

    def __init__(self, means: Means, places: int, decay: float) -> None:
        self._means, self._decay = means, decay
        self.nobody = places
        self._free = list(range(places))
        self._owners: dict[int, tuple[Sequence, int]] = {}

    def give(self, sequences: Seq[Sequence]) -> list[int]:
        """The places of a batch's sequences, their means in them.

        Who is not in the batch gives its place up; its means become its own again.
        """
        here = {id(s) for s in sequences}
        for gone in [i for i in self._owners if i not in here]:
            s, place = self._owners.pop(gone)
            self._free.append(place)
            s.learned = replace(
                s.learned,
                filling=_apart(s.learned.filling, self._means.filling, place),
                left_out=_apart(s.learned.left_out, self._means.left_out, place),
            )
        return [self._place(s) for s in sequences]

    def _place(self, s: Sequence) -> int:
        if s.learned.filling is None or self._means.filling is None:
            return self.nobody
        if id(s) not in self._owners:
            self._owners[id(s)] = (s, self._free.pop())
        place = self._owners[id(s)][1]
        s.learned = replace(
            s.learned,
            filling=_moved(s.learned.filling, self._means.filling, place),
            left_out=_moved(s.learned.left_out, self._means.left_out, place),
        )
        return place

    def taught(self, s: Sequence, verified: int, *, limits: bool) -> None:
        """Age what a sequence has learned: the round has added so many tokens to its sums.

        With `limits` to those of what its plan's limits leave out, too.
        """
        if not verified or id(s) not in self._owners:
            return
        limited = limits and s.plan is not None and bool(s.plan.windowed)
        left_out = s.learned.left_out
        s.learned = replace(
            s.learned,
            filling=self._older(s.learned.filling, verified),
            left_out=self._older(left_out, verified) if limited else left_out,
        )

    def _older(self, mean: RunningMean | None, verified: int) -> RunningMean | None:
        if mean is None:
            return None
        weight = self._decay**verified * mean.weight
        return RunningMean(mean.sums, weight + sum(self._decay**i for i in range(verified)))


def _apart(mean: RunningMean | None, sums: Tensor | None, place: int) -> RunningMean | None:
    """The mean with sums of its own, if they are those of a place."""
    if mean is None or sums is None or mean.sums.data_ptr() != sums[place].data_ptr():
        return mean
    return RunningMean(mean.sums.clone(), mean.weight)


def _moved(mean: RunningMean | None, sums: Tensor | None, place: int) -> RunningMean | None:
    """The mean with its sums at a place; copied there unless they are."""
    if mean is None or sums is None:
        return mean
    own = sums[place]
    if mean.sums.data_ptr() != own.data_ptr():
        own.copy_(mean.sums)
    return RunningMean(own, mean.weight)
