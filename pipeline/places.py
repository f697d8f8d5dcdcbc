"""Where an input lies: a file, a folder or a glob in its file system, and the files below it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from pyarrow import fs

from pipeline.file_systems import resolve
from pipeline.globs import Glob


@dataclass(frozen=True, slots=True)
class Place:
    """An input: `base` is its path, or the folder that a glob's matches lie below."""

    filesystem: fs.FileSystem
    base: str
    kind: fs.FileType
    glob: Glob | None = None

    def meets(self, filesystem: fs.FileSystem, folder: str) -> bool:
        """Whether something in a folder can belong to this input, or this input lies in it."""
        if not self.filesystem.equals(filesystem):
            return False
        base, folder = real_path(filesystem, self.base), real_path(filesystem, folder)
        if _lies_in(base, folder):
            return True
        inside = _lies_in(folder, base)
        return inside and (self.glob is None or self.glob.reaches(folder[len(base) :].lstrip("/")))


def locate(given: str) -> Place:
    """Find what an input's path or URI means; a name that exists is no glob.

    Raises:
        ValueError: there is no such file or folder, or it is no usable path or glob.
    """
    filesystem, path = resolve(given)
    info = filesystem.get_file_info(path)
    if info.type in (fs.FileType.File, fs.FileType.Directory):
        return Place(filesystem, path.rstrip("/") or "/", info.type)
    try:
        glob = Glob.of(path)
    except ValueError as error:
        raise ValueError(f"input is {given!r}: {error}") from None
    if glob is None:
        raise ValueError(f"input is {given!r}: there is no such file or folder")
    return Place(filesystem, glob.base, fs.FileType.Directory, glob)


def files_below(filesystem: fs.FileSystem, folder: str) -> list[str]:
    """All files in a folder and its sub-folders; none where there is no such folder.

    On a local disk they come first that no link leads to, and links that lead nowhere are among
    them, so that they can be named.
    """
    if filesystem.type_name == "local":
        return list(_local_files(folder))
    selector = fs.FileSelector(folder, recursive=True, allow_not_found=True)
    return [f.path for f in filesystem.get_file_info(selector) if f.is_file]


def real_path(filesystem: fs.FileSystem, path: str) -> str:
    """The one path, of all that links make, of a local file; paths elsewhere as they are."""
    if filesystem.type_name == "local":
        return os.path.realpath(path)
    return path.rstrip("/")


def _local_files(base: str) -> Iterator[str]:
    try:
        os.stat(base)
    except (FileNotFoundError, NotADirectoryError):
        return
    # Each with the real paths of the folders around it, which a link back to leads in circles.
    todo = deque([(base, frozenset[str]())])
    links: list[str] = []
    while todo:
        folder, around = todo.popleft()
        real = os.path.realpath(folder)
        if real in around:
            continue
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_symlink() and not os.path.isdir(entry.path):
                    if os.path.isfile(entry.path) or not os.path.exists(entry.path):
                        links.append(entry.path)
                elif entry.is_dir():
                    # Links last: what they lead to may lie in a folder whose name gives a column.
                    put = todo.append if entry.is_symlink() else todo.appendleft
                    put((entry.path, around | {real}))
                elif entry.is_file():
                    yield entry.path
    yield from links


def _lies_in(path: str, folder: str) -> bool:
    return f"{path}/".startswith(f"{folder.rstrip('/')}/")
