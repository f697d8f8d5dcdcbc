"""Writing results: one block, one file, one commit.

The file is the commit record. Its name derives from the fingerprint, the run's fence and its row
keys, so a task that Ray runs twice writes the same file twice; it appears whole or not at all
(`storage`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt
from ray.data import Datasink
from ray.data.block import Block, BlockAccessor

from pipeline.fingerprint import Fingerprint
from pipeline.key_columns import stored_keys
from pipeline.names import FileName
from pipeline.schema import COMPLETION, ROW_KEY, STATUS
from pipeline.storage import Store

FINGERPRINT_KEY = b"admg.fingerprint"
# Few different numbers in long lists: always worth a dictionary. Parquet's names of list members.
_NESTED = (
    "drafter_tokens.list.element.source",
    "dropped_attention_layers.list.element",
    "acceptance_histogram.list.element",
)


def encode(table: pa.Table, fingerprint: Fingerprint) -> pa.Buffer:
    """A file's bytes: rows sorted by id, the fingerprint in the footer."""
    table = table.sort_by(table.schema.names[0])
    table = table.replace_schema_metadata({FINGERPRINT_KEY: fingerprint.to_json().encode()})
    out = pa.BufferOutputStream()
    pq.write_table(
        table,
        out,
        compression="zstd",
        write_page_index=True,
        use_dictionary=[*_repetitive(table), *_NESTED],
    )
    return out.getvalue()


def _repetitive(table: pa.Table) -> list[str]:
    """The flat columns in which a value comes twice on average: a dictionary makes them smaller."""
    unique = (table.schema.names[0], ROW_KEY, COMPLETION)
    return [n for n in table.schema.names if n not in unique and _repeats(table[n])]


def _repeats(column: pa.ChunkedArray) -> bool:
    if pt.is_dictionary(column.type):
        return True
    try:
        return bool(2 * pc.count_distinct(column).as_py() <= len(column))
    except pa.ArrowNotImplementedError:
        return False  # nested, null, and whatever kept columns may be


@dataclass(frozen=True, slots=True)
class CommittedFile:
    """What a write task says about its commit."""

    name: str
    rows: int
    completion_tokens: int


def commit(
    store: Store, fingerprint: Fingerprint, table: pa.Table, merged: bool = False
) -> CommittedFile:
    """Write one file of the output.

    Raises:
        Fenced: the output has another owner by now, or the run is past decoding.
    """
    keys, ok = stored_keys(table[ROW_KEY]), pc.equal(table[STATUS], "ok").to_numpy()
    name = FileName.of(fingerprint, keys, ok, store.fence, merged)
    store.write(str(name), encode(table, fingerprint))
    return CommittedFile(str(name), table.num_rows, pc.sum(table["completion_tokens"]).as_py() or 0)


class ResultSink(Datasink[list[CommittedFile]]):
    """Ray's side of `commit`: each write task commits the block that it is given."""

    def __init__(self, store: Store, fingerprint: Fingerprint, schema: pa.Schema) -> None:
        self._store = store
        self._fingerprint = fingerprint
        self._schema = schema
        self.files: list[CommittedFile] = []

    def write(self, blocks: Iterable[Block], ctx: object) -> list[CommittedFile]:
        """Commit the rows of a task; a task without rows leaves no file."""
        tables = [BlockAccessor.for_block(block).to_arrow() for block in blocks]
        rows = [t.select(self._schema.names).cast(self._schema) for t in tables if t.num_rows]
        if not rows:
            return []
        return [commit(self._store, self._fingerprint, pa.concat_tables(rows))]

    def on_write_complete(self, write_result: object) -> None:
        """Remember what was committed (on the driver)."""
        returns = write_result.write_returns  # type: ignore[attr-defined]
        self.files = [file for files in returns for file in files or []]
