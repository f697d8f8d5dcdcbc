"""Input chunks as a Ray datasource: one read task for each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pyarrow as pa
from ray.data import Datasource
from ray.data.block import BlockMetadata
from ray.data.context import DataContext
from ray.data.datasource import ReadTask

from pipeline.chunks import Chunk


class ChunkDatasource(Datasource):
    """Reads chunks into tables of one schema; `lenient` ends a chunk where it is bad."""

    def __init__(self, chunks: Sequence[Chunk], schema: pa.Schema, lenient: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._read = Chunk.read_what_is_left if lenient else Chunk.read
        self._chunks = chunks
        self._schema = schema

    def estimate_inmemory_data_size(self) -> int | None:
        """Unknown: Ray then measures."""
        return None

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,
    ) -> list[ReadTask]:
        """One task a chunk, whatever parallelism is asked for: chunks are small already."""
        return [
            ReadTask(
                partial(self._read, chunk, self._schema),
                BlockMetadata(
                    num_rows=chunk.rows,
                    size_bytes=None,
                    input_files=(chunk.shard.path,),
                    exec_stats=None,
                ),
                schema=self._schema,
                per_task_row_limit=per_task_row_limit,
            )
            for chunk in self._chunks
        ]


def chunk_source(chunks: Sequence[Chunk], schema: pa.Schema, lenient: bool = False) -> Datasource:
    """The datasource of these chunks."""
    return ChunkDatasource(chunks, schema, lenient)
