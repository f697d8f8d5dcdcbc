"""Files under one URI: listing, reading, and writes that are seen whole or not at all.

On a local disk or HDFS a file is written aside, made durable and renamed; an object store shows
an object only when its one PUT has ended. Everything of ours that is no result lies in `_admg/`.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

STATE = "_admg"
TEMPORARY = f"{STATE}/tmp"

_RENAMES = ("local", "hdfs")


@lru_cache(maxsize=64)
def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the path in it. Cached: some file systems log in.

    Raises:
        ValueError: a URI that neither pyarrow nor fsspec knows.
    """
    if "://" not in uri and not uri.startswith("file:"):
        return fs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    try:
        system, path = fs.FileSystem.from_uri(uri)
        return system, path
    except pa.ArrowInvalid as known_to_arrow:
        try:
            import fsspec

            system, path = fsspec.core.url_to_fs(uri)
        except (ImportError, ValueError):
            raise ValueError(f"{uri!r} is no usable path: {known_to_arrow}") from None
        return fs.PyFileSystem(fs.FSSpecHandler(system)), path


@dataclass(frozen=True, slots=True)
class Store:
    """A folder, by URI. Small to pickle: each process resolves it for itself."""

    uri: str

    @property
    def filesystem(self) -> fs.FileSystem:
        """The pyarrow file system."""
        return resolve(self.uri)[0]

    @property
    def root(self) -> str:
        """The folder's path in its file system."""
        return resolve(self.uri)[1].rstrip("/") or "/"

    def path(self, name: str) -> str:
        """The path of a file by its name in the folder."""
        return f"{self.root}/{name}"

    def names(self, suffix: str, folder: str = "") -> list[str]:
        """The names of the files that lie directly in the folder (or a folder in it), sorted."""
        base = self.path(folder) if folder else self.root
        found = self.filesystem.get_file_info(fs.FileSelector(base, allow_not_found=True))
        return sorted(f.base_name for f in found if f.is_file and f.base_name.endswith(suffix))

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return bool(self.filesystem.get_file_info(self.path(name)).is_file)

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        with self.filesystem.open_input_file(self.path(name)) as stream:
            return bytes(stream.read())

    def delete(self, name: str) -> None:
        """Remove a file; one that is gone already is no error."""
        try:
            self.filesystem.delete_file(self.path(name))
        except FileNotFoundError:
            return

    def prepare(self) -> None:
        """Make the folder where there are folders, and remove what dead writers left aside."""
        if self.filesystem.type_name in _RENAMES:
            self.filesystem.create_dir(self.path(TEMPORARY), recursive=True)
        for name in self.names("", TEMPORARY):
            self.delete(f"{TEMPORARY}/{name}")

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write a file so that readers see all of it or nothing, under power loss too (local)."""
        kind = self.filesystem.type_name
        aside = self.path(f"{TEMPORARY}/{uuid.uuid4().hex}")
        if kind == "local":
            _write_durably(aside, data)
            os.replace(aside, self.path(name))
            _sync_folder(os.path.dirname(self.path(name)))
        elif kind == "hdfs":
            _put(self.filesystem, aside, data)
            self.filesystem.move(aside, self.path(name))
        else:
            _put(self.filesystem, self.path(name), data)


def _put(filesystem: fs.FileSystem, path: str, data: bytes | pa.Buffer) -> None:
    # No `with`: closing is what publishes an object, so a failed write must not reach it.
    stream = filesystem.open_output_stream(path)
    stream.write(data)
    stream.close()


def _write_durably(path: str, data: bytes | pa.Buffer) -> None:
    with open(path, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(path: str) -> None:
    # The rename itself is durable only when the folder is.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
