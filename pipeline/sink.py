"""Writing results: one block, one file, one commit.

The file is the commit record. Its name derives from the fingerprint and its row keys, so a task
that Ray runs twice writes the same file twice; it appears whole or not at all (`storage`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from ray.data import Datasink
from ray.data.block import Block, BlockAccessor

from pipeline.fingerprint import Fingerprint
from pipeline.schema import ROW_KEY
from pipeline.storage import Store

PREFIX = "part-"
SUFFIX = ".parquet"
FINGERPRINT_KEY = b"admg.fingerprint"
_DIGEST_CHARS = 12


def file_name(fingerprint: Fingerprint, keys: Iterable[bytes]) -> str:
    """The name of the file that holds exactly these rows."""
    content = hashlib.blake2b(b"".join(sorted(keys)), digest_size=16).hexdigest()
    return f"{PREFIX}{fingerprint.digest[:_DIGEST_CHARS]}-{content}{SUFFIX}"


def digest_of(name: str) -> str:
    """The fingerprint's part of a file name; "" for a file that is not ours."""
    parts = name.removesuffix(SUFFIX).split("-")
    ours = len(parts) == 3 and f"{parts[0]}-" == PREFIX and len(parts[1]) == _DIGEST_CHARS
    return parts[1] if ours else ""


def encode(table: pa.Table, fingerprint: Fingerprint) -> pa.Buffer:
    """A file's bytes: rows sorted by id, the fingerprint in the footer."""
    table = table.sort_by(table.schema.names[0])
    table = table.replace_schema_metadata({FINGERPRINT_KEY: fingerprint.to_json().encode()})
    out = pa.BufferOutputStream()
    pq.write_table(table, out, compression="zstd", write_page_index=True)
    return out.getvalue()


@dataclass(frozen=True, slots=True)
class CommittedFile:
    """What a write task says about its commit."""

    name: str
    rows: int
    completion_tokens: int


def commit(store: Store, fingerprint: Fingerprint, table: pa.Table) -> CommittedFile:
    """Write one file of the output."""
    name = file_name(fingerprint, table[ROW_KEY].to_pylist())
    store.write(name, encode(table, fingerprint))
    return CommittedFile(name, table.num_rows, pc.sum(table["completion_tokens"]).as_py() or 0)


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
