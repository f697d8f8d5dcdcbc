"""The inputs of the stages: documents that fit, parts of those that do not, joined summaries.

Every row that the user's shards hold becomes exactly one row of the last stage's input. All of it
follows from the documents and the settings alone, so that it can be written anew at any time.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.nightly.file import ADDED
from jobs.nightly.prompts import DOCUMENT
from jobs.nightly.sentences import parts
from pipeline.chunks import Chunk
from pipeline.factory import TokenizerLike
from pipeline.prepare import readable, values_of
from pipeline.prompts import NOT_UNICODE
from pipeline.storage import Store

INPUTS = "inputs"
LAST = "summaries"
_ROWS = 4096
Id = int | str

PARTS_SCHEMA_TAIL = (
    pa.field("part", pa.int32()),
    pa.field(DOCUMENT, pa.string()),
)


@dataclass(frozen=True, slots=True)
class Cutter:
    """Cuts documents to what fits; `budget` None: everything does."""

    tokenizer: TokenizerLike
    budget: int | None

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        return [len(ids) for ids in self.tokenizer.encode(texts, special=False)]

    def parts(self, text: str) -> list[str]:
        """The parts of a document, one if it fits."""
        if self.budget is None or self._surely_fits(text) or self.count([text])[0] <= self.budget:
            return [text]
        return [part for part in self._cut(text, self.budget) if part.strip()]

    def _cut(self, text: str, budget: int) -> list[str]:
        # Sentences joined may be some tokens more than they are one by one.
        allowed = budget
        while True:
            found = parts(text, self.count, allowed)
            over = max(self.count(found)) - budget
            if over <= 0 or allowed == 1:
                return found
            allowed = max(1, allowed - 2 * over)

    def _surely_fits(self, text: str) -> bool:
        # A token is at least one byte of the text.
        return self.budget is not None and 4 * len(text) < self.budget


@dataclass(slots=True)
class Joined:
    """What has become of a document that was too long."""

    text: str | None
    parts: int
    parts_failed: int = 0
    truncated: bool = False


@dataclass(slots=True)
class Parts:
    """Parts of documents of one level, each to be summarised on its own."""

    level: int
    of: dict[Id, list[str]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The stage's name and its folder's."""
        return f"parts-{self.level}"

    def table(self, ids: pa.DataType) -> pa.Table:
        """The rows of the stage: an id of their own, their document's id, their place in it."""
        rows = [
            (f"{document}/{self.level}.{i}", document, i, text)
            for document, texts in self.of.items()
            for i, text in enumerate(texts)
        ]
        schema = pa.schema([("id", pa.string()), ("document", ids), *PARTS_SCHEMA_TAIL])
        columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
        arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
        return pa.table(arrays, schema=schema)


def long_documents(
    chunks: Sequence[Chunk], schema: pa.Schema, id_column: str, text_column: str, cutter: Cutter
) -> dict[Id, list[str]]:
    """The parts of every document that does not fit."""
    wanted = pa.schema([schema.field(id_column), schema.field(text_column)])
    found: dict[Id, list[str]] = {}
    for chunk in chunks:
        for table in chunk.read(wanted):
            texts = values_of(table[text_column])
            for document, text in zip(values_of(table[id_column]), texts, strict=True):
                if text is None or text is NOT_UNICODE or not text.strip():
                    continue
                pieces = cutter.parts(text)
                if len(pieces) > 1:
                    found[document] = pieces
    return found


def join(before: Mapping[Id, list[str]], summaries: pa.Table, known: dict[Id, Joined]) -> None:
    """Put the summaries of a level's parts together, document by document, in their order."""
    texts: dict[Id, dict[int, str]] = defaultdict(dict)
    for row in summaries.select(["document", "part", "status", "completion"]).to_pylist():
        if row["document"] in before and row["status"] == "ok" and row["completion"].strip():
            texts[row["document"]][row["part"]] = row["completion"].strip()
    for document, pieces in before.items():
        found = texts.get(document, {})
        text = "\n\n".join(found[i] for i in range(len(pieces)) if i in found) or None
        state = known.setdefault(document, Joined(None, len(pieces)))
        state.text = text
        # The output may still hold parts of an earlier cut, that had more of them.
        state.parts_failed += len(pieces) - sum(i in found for i in range(len(pieces)))


def last_tables(
    chunk: Chunk,
    schema: pa.Schema,
    keep: Sequence[str],
    columns: tuple[str, str],
    known: Mapping[Id, Joined],
) -> Iterator[pa.Table]:
    """A chunk of the user's rows as the last stage takes them.

    Args:
        chunk: the rows.
        schema: what they are read as.
        keep: the columns to carry along.
        columns: the names of the id's column and the text's.
        known: the documents that were too long.
    """
    for table in chunk.read(schema):
        states = [known.get(document) for document in values_of(table[columns[0]])]
        out = table.select([columns[0]])
        for name in keep:
            out = out.append_column(table.schema.field(name), readable(table[name]))
        out = out.append_column(DOCUMENT, _documents(table[columns[1]], states))
        own: list[tuple[pa.DataType, list[Any]]] = [
            (pa.int32(), [1 if s is None else s.parts for s in states]),
            (pa.int32(), [0 if s is None else s.parts_failed for s in states]),
            (pa.bool_(), [s is not None and s.truncated for s in states]),
        ]
        for name, (kind, values) in zip(ADDED, own, strict=True):
            out = out.append_column(name, pa.array(values, kind))
        yield out


def _documents(column: pa.ChunkedArray, states: Sequence[Joined | None]) -> pa.Array:
    """What is to be summarised: the text itself, bytes that are no UTF-8 included, or the joined.

    A blank text becomes null: with examples around it it would make a prompt, and a summary of
    nothing.
    """
    blank = [isinstance(text, str) and not text.strip() for text in values_of(column)]
    changed = [state is not None or is_blank for state, is_blank in zip(states, blank, strict=True)]
    new = [s and s.text for s, is_new in zip(states, changed, strict=True) if is_new]
    whole = column.combine_chunks()
    return pc.replace_with_mask(whole, pa.array(changed, pa.bool_()), pa.array(new, whole.type))


def write_stage(store: Store, stage: str, tables: Mapping[str, Iterator[pa.Table]]) -> int:
    """Write a stage's input, a file for each name, and remove what is no longer of it.

    Raises:
        Fenced: another tick has taken over.
        StorageError: the storage does not answer.
    """
    folder = f"{INPUTS}/{stage}"
    if store.renames:
        store.filesystem.create_dir(store.path(folder), recursive=True)
    rows = 0
    for name, parts_of_it in tables.items():
        sink = pa.BufferOutputStream()
        writer: pq.ParquetWriter | None = None
        for table in parts_of_it:
            if writer is None:
                writer = pq.ParquetWriter(sink, table.schema, compression="zstd")
            writer.write_table(table, row_group_size=_ROWS)
            rows += table.num_rows
        if writer is not None:
            writer.close()
            store.write(f"{folder}/{name}", sink.getvalue())
    for name in store.names("", folder):
        if name not in tables:
            store.delete(f"{folder}/{name}")
    return rows


def file_name(chunk: Chunk) -> str:
    """A name that tells people and the program which rows a prepared file is made of."""
    place = f"{chunk.shard.path}:{chunk.row_groups[0] if chunk.row_groups else 0}"
    digest = hashlib.blake2b(place.encode(), digest_size=6).hexdigest()
    return f"{PurePosixPath(chunk.shard.path).stem[:60]}-{digest}.parquet"
