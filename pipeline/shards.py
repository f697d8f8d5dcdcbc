"""Finding input shards: files, folders and globs on any file system, in a stable order."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow.parquet as pq
from pyarrow import fs

from pipeline.storage import resolve

_GLOB = re.compile(r"[*?\[]")
_SUFFIXES = {".parquet", ".pq", ".parq", ""}


@dataclass(frozen=True, slots=True)
class Shard:
    """One input file: the URI that names its file system, and its path there."""

    uri: str
    path: str

    def open(self) -> pq.ParquetFile:
        """Open the file.

        Raises:
            ValueError: it cannot be read as Parquet, or is gone.
        """
        try:
            # pre_buffer: few large reads, which object stores need and disks do not mind.
            return pq.ParquetFile(resolve(self.uri)[0].open_input_file(self.path), pre_buffer=True)
        except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
            raise self.unreadable(error) from error

    def unreadable(self, error: Exception) -> ValueError:
        """The error that names this shard."""
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return ValueError(f"the input shard {self.path} cannot be read as Parquet: {reason}")


def find_shards(inputs: Iterable[str]) -> list[Shard]:
    """All shards that `inputs` name, each once.

    In a folder (read with its sub-folders) names that begin with "_" or "." are left out, and so
    are files whose ending is not Parquet's; a file named itself or by a glob may have any name.

    Raises:
        ValueError: an input that does not exist or holds no shard.
    """
    shards: dict[str, Shard] = {}
    for given in inputs:
        found = list(_expand(given))
        if not found:
            raise ValueError(f"input is {given!r}: there is no Parquet file")
        for path in found:
            shards.setdefault(path, Shard(given, path))
    return list(shards.values())


def _expand(given: str) -> Iterator[str]:
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
