"""Finding input shards: files, folders and globs on any file system, in a stable order."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipeline.errors import StorageError
from pipeline.file_systems import resolve
from pipeline.places import Place, files_below, locate, real_path
from pipeline.retry import PATIENCE, Patience, may_pass, one_line

_SUFFIXES = {".parquet", ".pq", ".parq", ""}
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_NAMED_AT_MOST = 5


class BadShard(ValueError):
    """A shard that the run cannot use, and why, in one sentence that names it."""

    def __init__(self, path: str, sentence: str) -> None:
        super().__init__(path, sentence)
        self.path = path

    def __str__(self) -> str:
        return str(self.args[1])


def describe_bad(bad: Iterable[BadShard]) -> str:
    """One sentence for all of them; of many the first few are named."""
    said = [str(shard) for shard in bad]
    more = len(said) - _NAMED_AT_MOST
    return "; ".join(said[:_NAMED_AT_MOST]) + (f"; and {more} shards more" if more > 0 else "")


@dataclass(frozen=True, slots=True)
class Shard:
    """One input file: the URI that names its file system, and its path there."""

    uri: str
    path: str
    patience: Patience = field(default=PATIENCE, compare=False)

    @property
    def partitions(self) -> dict[str, str | None]:
        """The columns that the folders' names give, as in `date=2026-11-20`; always text."""
        pairs = (part.partition("=") for part in PurePosixPath(self.path).parts[:-1])
        values = {unquote(name): unquote(value) for name, equals, value in pairs if equals}
        return {name: None if v == _NULL_PARTITION else v for name, v in values.items() if name}

    def open(self) -> pq.ParquetFile:
        """Open the file.

        Raises:
            BadShard: it cannot be read as Parquet, or is gone.
            StorageError: the storage does not answer.
        """

        def opened() -> pq.ParquetFile:
            stream = resolve(self.uri)[0].open_input_file(self.path)
            file = pq.ParquetFile(
                stream,
                # Few large reads, which object stores need and disks do not mind.
                pre_buffer=True,
                page_checksum_verification=True,
                # In nanoseconds, years after 2262 would come back as others, without a word.
                coerce_int96_timestamp_unit="us",
            )
            list(file.schema_arrow.names)  # made only now, of a footer that may be damaged
            return file

        try:
            return self.patience.run(f"opening {self.path}", opened)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self.unreadable(error) from error

    def batches(self, row_groups: list[int], columns: list[str], rows: int) -> Iterator[Any]:
        """The rows of some row groups in record batches of at most so many rows.

        Where the storage fails on the way, reading goes on behind the batches given already.

        Raises:
            BadShard: it is corrupt, or is gone.
            StorageError: the storage does not answer.
        """
        done, pauses = 0, self.patience.pauses()
        while True:
            try:
                with self.open() as file:
                    found = file.iter_batches(rows, row_groups=row_groups, columns=columns)
                    for batch in itertools.islice(found, done, None):
                        yield batch
                        done, pauses = done + 1, self.patience.pauses()
                return
            except (OSError, pa.ArrowException) as error:
                if not may_pass(error):
                    raise self.unreadable(error) from error
                pause = next(pauses, None)
                if pause is None:
                    said = f"reading {self.path} failed for {self.patience.seconds:g} seconds"
                    raise StorageError(f"{said}: {one_line(error)}") from error
            time.sleep(pause)

    def unreadable(self, error: Exception) -> BadShard:
        """The error that names this shard."""
        said = f"the input shard {self.path} cannot be read as Parquet: {one_line(error)}"
        return BadShard(self.path, said)


def find_shards(inputs: Iterable[str], patience: Patience = PATIENCE) -> list[Shard]:
    """All shards that `inputs` name, each file once, however many links and inputs lead to it.

    In a folder (read with its sub-folders) names that begin with "_" or "." are left out, and so
    are files whose ending is not Parquet's; a file named itself or by a glob may have any name.

    Raises:
        ValueError: an input that does not exist or holds no shard.
    """
    shards: list[Shard] = []
    known: list[tuple[fs.FileSystem, set[str]]] = []  # file systems cannot be hashed
    for given in inputs:
        filesystem, found = patience.run(f"listing {given}", partial(_expand, given))
        if not found:
            raise ValueError(f"input is {given!r}: there is no Parquet file")
        seen = next((files for system, files in known if system.equals(filesystem)), None)
        if seen is None:
            seen = set()
            known.append((filesystem, seen))
        shards += [Shard(given, path, patience) for path, real in found if real not in seen]
        seen |= {real for _, real in found}
    return shards


def _expand(given: str) -> tuple[fs.FileSystem, list[tuple[str, str]]]:
    """The file system of an input, and its shards by one path each, with their real paths."""
    place = locate(given)
    paths: dict[str, str] = {}
    for path in _matches(place):
        paths.setdefault(real_path(place.filesystem, path), path)
    return place.filesystem, sorted((path, real) for real, path in paths.items())


def _matches(place: Place) -> Iterator[str]:
    if place.kind == fs.FileType.File:
        yield place.base
        return
    for file in files_below(place.filesystem, place.base):
        name = file[len(place.base) :].lstrip("/")
        if place.glob is None or place.glob.matches_above(name):
            parts = PurePosixPath(name).parts
            hidden = any(part.startswith(("_", ".")) for part in parts)
            if not hidden and PurePosixPath(name).suffix.lower() in _SUFFIXES:
                yield file
        elif place.glob.matches(name):
            yield file
