"""Pieces of shards: what one task scans or reads."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from pipeline.columns import as_column
from pipeline.shards import BadShard, Shard

_CHUNK_ROWS = 16_384
_BATCH_ROWS = 1_024
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive row groups of one shard; `columns` are those that the file itself has."""

    shard: Shard
    row_groups: tuple[int, ...]
    rows: int
    columns: frozenset[str]

    def read(self, schema: pa.Schema) -> Iterator[pa.Table]:
        """The rows in small tables of this schema; folders' names give what the file lacks.

        Raises:
            BadShard: the shard is corrupt or gone.
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
        columns = [
            as_column(batch[field.name], field.type)
            if field.name in self.columns
            else pa.repeat(pa.scalar(partitions[field.name], field.type), batch.num_rows)
            for field in schema
        ]
        return pa.table(columns, schema=schema)


def chunks_of(shard: Shard, schema: pa.Schema, groups: list[int]) -> Iterator[Chunk]:
    """A shard with row groups of these sizes in chunks of some thousand rows."""
    columns = frozenset(schema.names)
    taken: list[int] = []
    rows = 0
    for i, size in enumerate(groups):
        taken.append(i)
        rows += size
        if rows >= _CHUNK_ROWS or i == len(groups) - 1:
            yield Chunk(shard, tuple(taken), rows, columns)
            taken, rows = [], 0
