"""A sample of rows that is the same whenever the same files are read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

SAMPLE_ROWS = 20_000
_SEED = 20241028


class Sample:
    """Up to `most` rows, each row as likely as any other; all of them where there are no more.

    Every row draws a number; the rows with the smallest ones stay. `table` has them in the order
    in which they came, which is that of the files.
    """

    def __init__(self, columns: Sequence[str], most: int = SAMPLE_ROWS) -> None:
        self.rows = 0
        self._columns, self._most = list(columns), most
        self._random = np.random.default_rng(_SEED)
        self._tables: list[pa.Table] = []
        self._drawn: list[np.ndarray] = []
        self._held, self._limit = 0, 1.0

    def add(self, table: pa.Table) -> None:
        """Let these rows draw."""
        self.rows += table.num_rows
        drawn = self._random.random(table.num_rows)
        stay = drawn < self._limit
        rows = table.select(self._columns)
        self._tables.append(rows if stay.all() else rows.filter(pa.array(stay)))
        self._drawn.append(drawn[stay])
        self._held += int(stay.sum())
        if self._held > 2 * self._most:
            self._thin()

    @property
    def table(self) -> pa.Table:
        """The sampled rows."""
        self._thin()
        return self._tables[0]

    def _thin(self) -> None:
        drawn, table = np.concatenate(self._drawn), pa.concat_tables(self._tables)
        if len(drawn) > self._most:
            self._limit = float(np.partition(drawn, self._most)[self._most])
            stay = drawn < self._limit
            drawn, table = drawn[stay], table.filter(pa.array(stay))
        # Copied: a slice would keep the whole batch that it was cut from.
        self._tables, self._drawn, self._held = [table.combine_chunks()], [drawn], len(drawn)
