"""Pieces of shards: what one task scans or reads."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from pipeline.columns import as_column, decoded
from pipeline.retry import one_line
from pipeline.schema import own_name
from pipeline.shards import BadShard, Shard

_CHUNK_ROWS = 16_384
_BATCH_ROWS = 1_024
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive row groups of one shard.

    `columns` are those that the file itself has, `own` those that are read in the shard's own type
    as well (see `columns.own_columns`).
    """

    shard: Shard
    row_groups: tuple[int, ...]
    rows: int
    columns: frozenset[str]
    own: frozenset[str] = frozenset()

    def read(self, schema: pa.Schema) -> Iterator[pa.Table]:
        """The rows in small tables of this schema; folders' names give what the file lacks.

        Behind the columns of the schema come those of them that are in `own`, see `own_name`.

        Raises:
            BadShard: the shard is corrupt or gone, or holds a value that its type does not fit.
            StorageError: the storage does not answer.
        """
        names = [name for name in schema.names if name in self.columns]
        partitions = self.shard.partitions
        for batch in self.shard.batches(list(self.row_groups), names, _BATCH_ROWS):
            try:
                yield self._table(pa.table(batch), schema, partitions)
            except pa.ArrowException as error:
                raise self.shard.unreadable(error) from error

    def read_what_is_left(self, schema: pa.Schema) -> Iterator[pa.Table]:
        """The rows up to where the shard cannot be read; the end of the run misses the others."""
        try:
            yield from self.read(schema)
        except BadShard as problem:
            _log.warning("left out: %s", problem)

    def _table(
        self, batch: pa.Table, schema: pa.Schema, partitions: dict[str, str | None]
    ) -> pa.Table:
        found = {
            name: batch[name]
            if name in self.columns
            else pa.chunked_array([pa.repeat(pa.scalar(partitions[name], pa.string()), len(batch))])
            for name in schema.names
        }
        columns = [self._column(found[field.name], field) for field in schema]
        table = pa.table(columns, schema=schema)
        for name in schema.names:
            if name in self.own:
                table = table.append_column(own_name(name), decoded(found[name]))
        return table

    def _column(self, column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
        try:
            return as_column(column, field.type)
        except pa.ArrowException as error:
            path = self.shard.path
            raise BadShard(
                path,
                f"the column {field.name!r} has values in {path} that do not fit {field.type}, its "
                f"type over all shards ({column.type} in this one): {one_line(error)}",
            ) from error


def chunks_of(
    shard: Shard, schema: pa.Schema, groups: list[int], own: frozenset[str] = frozenset()
) -> Iterator[Chunk]:
    """A shard with row groups of these sizes in chunks of some thousand rows."""
    columns = frozenset(schema.names)
    taken: list[int] = []
    rows = 0
    for i, size in enumerate(groups):
        taken.append(i)
        rows += size
        if rows >= _CHUNK_ROWS or i == len(groups) - 1:
            yield Chunk(shard, tuple(taken), rows, columns, own)
            taken, rows = [], 0
