"""An output's rows, a few columns and some thousands of rows at a time.

Nothing here holds a file: what a report needs in memory does not grow with the output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StorageError
from pipeline.names import SUFFIX
from pipeline.retry import may_pass, one_line
from pipeline.schema import RESERVED
from pipeline.storage import Store

_ROWS = 16_384
# Pages are read through a buffer of this size; without it a column comes as one piece.
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of one file that follow each other; `start` is the first one's place in the file."""

    file: str
    start: int
    table: pa.Table


def result_files(store: Store) -> list[str]:
    """The names of an output's files.

    Raises:
        ValueError: a folder that holds no results of ours.
    """
    names = store.names(SUFFIX)
    if not names:
        raise ValueError(f"{store.uri} holds no results: it must be the --output of a run")
    return names


def id_column(store: Store, names: Sequence[str]) -> str:
    """The column of the rows' ids: the first one of every output."""
    with opened(store, names[0], ()) as file:
        return str(file.schema_arrow.names[0])


def kept_columns(store: Store, names: Sequence[str]) -> list[str]:
    """The input's columns that the run has kept, without the id."""
    with opened(store, names[0], ()) as file:
        return [name for name in file.schema_arrow.names[1:] if name not in RESERVED]


@contextmanager
def opened(store: Store, name: str, columns: Sequence[str]) -> Iterator[pq.ParquetFile]:
    """One file that has these columns.

    Raises:
        ValueError: it has not, it cannot be read, or it is gone.
        StorageError: the storage does not answer.
    """
    path = store.path(name)

    def file_of() -> pq.ParquetFile:
        stream = store.filesystem.open_input_file(path)
        return pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False)

    try:
        file = store.trying(f"reading {path}", file_of)
        try:
            missing = [c for c in columns if c not in file.schema_arrow.names]
            if missing:
                raise ValueError(
                    f"{store.uri} is not the output of a run: {name} has no column {missing[0]!r}"
                )
            yield file
        finally:
            file.close(force=True)
    except FileNotFoundError as error:
        raise ValueError(
            f"{store.uri} was changed while it was read: {name} is gone; give the command again"
        ) from error
    except (pa.ArrowException, OSError) as error:
        if may_pass(error):
            raise StorageError(f"reading {path} failed: {one_line(error)}") from error
        raise ValueError(f"{store.uri}: {name} cannot be read: {error}") from error


def chunks(store: Store, names: Sequence[str], columns: Sequence[str]) -> Iterator[Chunk]:
    """These columns of all rows, in the order of the files' names.

    Raises:
        ValueError: see `opened`.
    """
    for name in names:
        with opened(store, name, columns) as file:
            start = 0
            for batch in file.iter_batches(_ROWS, columns=list(columns), use_threads=False):
                table = pa.Table.from_batches([batch]).replace_schema_metadata().select(columns)
                yield Chunk(name, start, table)
                start += table.num_rows
            if not start:
                yield Chunk(name, 0, file.schema_arrow.empty_table().select(columns))
