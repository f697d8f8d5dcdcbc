"""Finding input shards: files, folders and globs on any file system, in a stable order."""

from __future__ import annotations

import itertools
import re
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
from pipeline.retry import PATIENCE, Patience, may_pass, one_line
from pipeline.storage import resolve

_GLOB = re.compile(r"[*?\[]")
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
            # pre_buffer: few large reads, which object stores need and disks do not mind.
            stream = resolve(self.uri)[0].open_input_file(self.path)
            file = pq.ParquetFile(stream, pre_buffer=True)
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
    """All shards that `inputs` name, each once.

    In a folder (read with its sub-folders) names that begin with "_" or "." are left out, and so
    are files whose ending is not Parquet's; a file named itself or by a glob may have any name.

    Raises:
        ValueError: an input that does not exist or holds no shard.
    """
    shards: dict[str, Shard] = {}
    for given in inputs:
        found = patience.run(f"listing {given}", partial(_expand, given))
        if not found:
            raise ValueError(f"input is {given!r}: there is no Parquet file")
        for path in found:
            shards.setdefault(path, Shard(given, path, patience))
    return list(shards.values())


def _expand(given: str) -> list[str]:
    return list(_matches(given))


def _matches(given: str) -> Iterator[str]:
    filesystem, path = resolve(given)
    info = filesystem.get_file_info(path)
    if info.is_file:
        yield info.path
    elif info.type == fs.FileType.Directory:
        base = path.rstrip("/")
        for file in _files(filesystem, base):
            parts = PurePosixPath(file[len(base) :].lstrip("/")).parts
            hidden = any(part.startswith(("_", ".")) for part in parts)
            if not hidden and PurePosixPath(file).suffix.lower() in _SUFFIXES:
                yield file
    elif _GLOB.search(path):
        matches = re.compile(_glob_pattern(path)).fullmatch
        base = path[: _GLOB.search(path).start()].rpartition("/")[0]  # type: ignore[union-attr]
        yield from (file for file in _files(filesystem, base) if matches(file))
    else:
        raise ValueError(f"input is {given!r}: there is no such file or folder")


def _files(filesystem: fs.FileSystem, base: str) -> list[str]:
    selector = fs.FileSelector(base, recursive=True, allow_not_found=True)
    return sorted(f.path for f in filesystem.get_file_info(selector) if f.is_file)


def _glob_pattern(glob: str) -> str:
    """A regular expression of a glob: `*`, `?` and `[..]` stay inside a folder, `**/` does not."""
    pattern, rest = "", glob
    while rest:
        if rest.startswith("**/"):
            pattern, rest = pattern + "(?:.*/)?", rest[3:]
        elif rest[0] == "*":
            pattern, rest = pattern + "[^/]*", rest[1:]
        elif rest[0] == "?":
            pattern, rest = pattern + "[^/]", rest[1:]
        elif rest[0] == "[" and "]" in rest[2:]:
            end = rest.index("]", 2)
            body = rest[1:end].replace("\\", "\\\\").replace("[", "\\[")
            body = "^" + body[1:] if body.startswith("!") else body
            pattern, rest = f"{pattern}[{body}]", rest[end + 1 :]
        else:
            pattern, rest = pattern + re.escape(rest[0]), rest[1:]
    return pattern
