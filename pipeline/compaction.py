"""What the end of a run does to its files: copies that lost go, small files become few large ones.

New files are written first, then the manifest names them, then the files that they replace go, and
`_SUCCESS` comes last. So rows are never missing, at any kill; until `_SUCCESS` is there a listing
may show some of them twice, while the files that the manifest names hold every row once. A merged
file is newer than its parts, so whoever finds both keeps the merged one (see `settle`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.fingerprint import Fingerprint
from pipeline.ledger import Ledger, read_columns
from pipeline.sink import commit
from pipeline.storage import Store

_AHEAD = 8
# Of rows in memory, where files are cut and where they count as small: one measure for both.
_MOST_BYTES = 512 * 2**20

_Rows = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Replacement:
    """What goes: files (`sources`, by index in the ledger) whose `rows` move, and empty ones.

    `names` are those of all.
    """

    sources: tuple[int, ...] = ()
    names: frozenset[str] = frozenset()
    rows: int = 0

    def __bool__(self) -> bool:
        return bool(self.names)


def plan(ledger: Ledger, best: _Rows, schema: pa.Schema, most_rows: int) -> Replacement:
    """What has to be written anew.

    A file is left alone that has lost no row, has the output's schema, and is neither small (under
    half of `most_rows` and of the bytes that fit) nor too large; so is a single small one. With
    `most_rows` 0 sizes do not matter.
    """
    kept = np.bincount(ledger.file_of[best], minlength=len(ledger.files))
    must, small, gone = [], [], []
    for i, file in enumerate(ledger.files):
        if not kept[i]:
            gone.append(i)
        elif kept[i] < file.rows or file.schema != schema or 0 < most_rows < file.rows:
            must.append(i)
        elif 2 * file.rows < most_rows and 2 * file.bytes < _MOST_BYTES:
            small.append(i)
    if must or len(small) > 1:
        must = sorted(must + small)
    names = frozenset(ledger.files[i].name for i in must + gone)
    return Replacement(tuple(must), names, int(kept[must].sum()) if must else 0)


@dataclass
class _Pile:
    """Tables that wait to become one file."""

    tables: list[pa.Table] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0

    def add(self, table: pa.Table) -> None:
        self.tables.append(table)
        self.rows += table.num_rows
        self.bytes += table.nbytes


def write_anew(
    store: Store,
    fingerprint: Fingerprint,
    ledger: Ledger,
    best: _Rows,
    replacement: Replacement,
    schema: pa.Schema,
    most_rows: int,
) -> dict[str, int]:
    """Write the new files and return their names and sizes in memory; the old ones stay for now.

    Memory is at most that of `_MOST_BYTES` read ahead, and of three times as much and one old file
    more: what waits to become a file, its sorted copy and its encoded bytes.

    Raises:
        Fenced: the output has another owner by now.
    """
    if not replacement.rows:
        return {}
    count = math.ceil(replacement.rows / most_rows) if most_rows else len(replacement.sources)
    target = math.ceil(replacement.rows / count)
    sizes: dict[str, int] = {}
    pile = _Pile()

    def write(rows: int) -> _Pile:
        whole = pa.concat_tables(pile.tables)
        first = whole.slice(0, rows)
        sizes[commit(store, fingerprint, first, merged=True).name] = first.nbytes
        rest = _Pile()
        if rows < whole.num_rows:
            rest.add(whole.slice(rows))
        return rest

    for table in _kept_rows(store, ledger, best, replacement.sources, schema):
        pile.add(table)
        while pile.rows >= target or (pile.rows and pile.bytes >= _MOST_BYTES):
            pile = write(min(target, pile.rows))
    if pile.rows:
        write(pile.rows)
    return sizes


def _kept_rows(
    store: Store, ledger: Ledger, best: _Rows, sources: Sequence[int], schema: pa.Schema
) -> Iterator[pa.Table]:
    """The rows that stay, file by file; up to `_MOST_BYTES` of files (or one) are read ahead."""
    starts = np.concatenate([[0], np.cumsum([f.rows for f in ledger.files])])

    def read(i: int) -> pa.Table:
        table = read_columns(store, ledger.files[i].name, None).replace_schema_metadata()
        rows = best[starts[i] : starts[i + 1]]
        return table.filter(pa.array(rows)).select(schema.names).cast(schema)

    with ThreadPoolExecutor(_AHEAD) as pool:
        waiting: deque[tuple[int, Future[pa.Table]]] = deque()
        for i in sources:
            size = ledger.files[i].bytes
            while waiting and sum(s for s, _ in waiting) + size > _MOST_BYTES:
                yield waiting.popleft()[1].result()
            waiting.append((size, pool.submit(read, i)))
            if len(waiting) > _AHEAD:
                yield waiting.popleft()[1].result()
        while waiting:
            yield waiting.popleft()[1].result()
