"""In which order rows go to the actors: like lengths together, and to each actor as much work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.schema import PROMPT

_WINDOW = 256  # rows, or what all actors hold together, if that is more


@dataclass(frozen=True, slots=True)
class Dealing:
    """Puts prepared rows in the order in which calls are to be made of them.

    The longest prompts of each window come first. Sequences of like lengths are decoded together
    then, in fewer and larger matrix products, and what takes longest does not begin last. A window
    is about what is committed together, so that the rows that are done still tell how long the
    rest will take.

    An actor that has loaded its model takes all that it may hold, one after another. So that it
    does not get the longest of all, the rows that the `actors` hold together are dealt as cards
    are.

    Args:
        actors: that rows are dealt to.
        held: rows that an actor has at once.
    """

    actors: int
    held: int

    @property
    def _together(self) -> int:
        """Rows that all actors have at once."""
        return self.actors * self.held

    def __call__(self, table: pa.Table) -> pa.Table:
        """The same rows; equal lengths stay in their order."""
        size = max(1, _WINDOW // self._together) * self._together  # nobody's part is cut in two
        windows = (table.slice(at, size) for at in range(0, table.num_rows, size))
        dealt = [window.take(self._order(window[PROMPT])) for window in windows]
        return pa.concat_tables(dealt) if dealt else table

    def _order(self, prompts: pa.ChunkedArray) -> pa.Array:
        lengths = pc.fill_null(pc.binary_length(prompts), 0)
        longest_first = pc.sort_indices(lengths, sort_keys=[("", "descending")])
        return pa.array(self._deal(longest_first.to_pylist()), pa.int64())

    def _deal(self, rows: Sequence[int]) -> list[int]:
        """All rows for the first actor, then all for the second, of as many as are held at once."""
        starts = range(0, len(rows), self._together)
        parts = [rows[at : at + self._together] for at in starts]
        return [
            row
            for part in parts
            for actor in range(self.actors)
            for row in part[actor :: self.actors]
        ]
