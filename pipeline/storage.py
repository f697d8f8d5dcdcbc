"""Files under one URI: listing, reading, and writes that are seen whole or not at all.

On a local disk or HDFS a file is written aside, made durable and renamed; an object store shows
an object only when its one PUT, or a large file's last request, has ended. Everything of ours that
is no result lies in `_admg/`.

Writers of one run share a room, a folder below `_admg/tmp`. Whoever takes an output over renames
the rooms of everybody else away, in one step, after which nothing can be committed from there. An
object store has no such step: there a writer looks, before its PUT or DELETE, whether it has been
shut out. One that sleeps between the two, or whose upload takes that long, may still commit, even
after the new owner's `_SUCCESS`: its rows are then listed twice until the next run reconciles them.
The files that the manifest names hold every row once all the same. It does not take its file back:
the new owner may already count its rows as done.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import pyarrow as pa
from pyarrow import fs

from pipeline.errors import Fenced, StorageError
from pipeline.file_systems import resolve
from pipeline.redaction import redacted
from pipeline.retry import PATIENCE, Patience, one_line

STATE = "_admg"
TEMPORARY = f"{STATE}/tmp"
LEASES = f"{STATE}/lease"
SEALED = ".sealed"

_RENAMES = ("local", "hdfs")
_LOOKS = 3
# Of S3: what is larger, pyarrow sends in parts, and a writer that is killed leaves them there.
_ONE_PUT_BYTES = 10 * 2**20 - 1

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Store:
    """A folder, by URI. Small to pickle: each process resolves it for itself.

    Every access is tried again while that may help and `patience` lasts; then it raises
    `StorageError`, and what cannot pass (a missing file, a forbidden one) its own `OSError`.
    `fence` is the number of the run that writes (see `lease`), `room` tells its writers apart that
    can be shut out on their own.
    """

    uri: str
    fence: int = 0
    room: str = ""
    patience: Patience = PATIENCE

    @property
    def filesystem(self) -> fs.FileSystem:
        """The pyarrow file system."""
        return self._resolved()[0]

    @property
    def root(self) -> str:
        """The folder's path in its file system."""
        return self._resolved()[1].rstrip("/") or "/"

    def _resolved(self) -> tuple[fs.FileSystem, str]:
        # S3 asks for the bucket's region.
        return self.patience.run(f"reaching {redacted(self.uri)}", lambda: resolve(self.uri))

    def path(self, name: str) -> str:
        """The path of a file by its name in the folder."""
        return f"{self.root}/{name}"

    def names(self, suffix: str, folder: str = "") -> list[str]:
        """The names of the files that lie directly in the folder (or a folder in it), sorted."""
        found = self.listing(folder)
        return sorted(f.base_name for f in found if f.is_file and f.base_name.endswith(suffix))

    def listing(self, folder: str = "") -> list[fs.FileInfo]:
        """What lies directly in the folder (or a folder in it); nothing where there is none."""
        base = self.path(folder) if folder else self.root
        # pyarrow looks twice, and takes a folder that appears between the two for no folder: an
        # error that another look of our own does not meet.
        for _ in range(_LOOKS - 1):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                return self._listed(base)
        try:
            return self._listed(base)
        except FileNotFoundError:
            return []

    def _listed(self, base: str) -> list[fs.FileInfo]:
        selector = fs.FileSelector(base, allow_not_found=True)
        return self.trying(f"listing {base}", lambda: self.filesystem.get_file_info(selector))

    def exists(self, name: str, kind: fs.FileType = fs.FileType.File) -> bool:
        """Whether there is a file (or a folder) of this name."""
        path = self.path(name)
        info = self.trying(f"looking for {path}", lambda: self.filesystem.get_file_info(path))
        return bool(info.type == kind)

    def read(self, name: str) -> bytes:
        """The bytes of a file."""

        def whole() -> bytes:
            with self.filesystem.open_input_file(self.path(name)) as stream:
                return bytes(stream.read())

        return self.trying(f"reading {self.path(name)}", whole)

    def trying(self, what: str, action: Callable[[], T]) -> T:
        """What `action` returns, tried again as long as that may help."""
        return self.patience.run(what, action)

    def delete(self, name: str) -> None:
        """Remove a file; one that is gone already is no error.

        Raises:
            Fenced: as of `write`. Where there are renames the file leaves through this writer's
                room, so that whoever is shut out removes nothing.
        """
        path = self.path(name)
        if self.fence and self.renames:
            aside = self.path(f"{self.aside}/{uuid.uuid4().hex}")
            try:
                self.trying(f"deleting {path}", lambda: self.filesystem.move(path, aside))
            except FileNotFoundError:
                if not self.exists(self.aside, fs.FileType.Directory):
                    raise self._fenced() from None
                return
            path = aside
        else:
            self._refuse_if_fenced()
        self._remove(path)

    def _remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.trying(f"deleting {path}", lambda: self.filesystem.delete_file(path))

    def make_folder(self, name: str) -> None:
        """Make a folder where there are folders; one that is there already stays."""
        path = self.path(name)
        if self.renames:
            self.trying(f"making {path}", lambda: self.filesystem.create_dir(path, recursive=True))

    @property
    def renames(self) -> bool:
        """Whether a file appears here by a rename, and not by one PUT."""
        return self.filesystem.type_name in _RENAMES

    @property
    def aside(self) -> str:
        """The folder in which this store's writers begin their files."""
        return f"{TEMPORARY}/{self.fence:08d}{self.room}"

    def prepare(self) -> None:
        """Shut out every other writer and make a room of one's own.

        Only whoever holds the lease may call this.

        Raises:
            Fenced: that is somebody else by now.
        """
        if self.renames:
            self._empty_rooms(keep=self.path(self.aside))
            self.make_folder(self.aside)
        # Looked at last: who takes over makes a lease first and then empties the rooms, so a room
        # made too late to be emptied is one whose maker sees that lease.
        self._refuse_if_fenced()

    def seal(self) -> Store:
        """Shut out this run's own workers; what comes back writes what ends the run."""
        self.shut()
        last = replace(self, room="-end")
        last.prepare()
        return last

    def shut(self) -> None:
        """Let nobody commit here any more: neither this run's workers nor any other's."""
        if self.renames:
            self._empty_rooms(keep="")
        elif self.fence:
            path = self.path(f"{LEASES}/{self.fence:08d}{SEALED}")
            self.trying(f"writing {path}", lambda: self._put(path, b""))

    def _empty_rooms(self, keep: str) -> None:
        for found in self.listing(TEMPORARY):
            number = found.base_name[:8]
            later = number.isdigit() and int(number) > self.fence
            if found.is_file:
                self._remove(found.path)
            elif found.path != keep and not later:  # this run may have been taken over meanwhile
                # Renamed first: deleting takes a while, in which files could still be committed.
                dead = self.path(f"{TEMPORARY}/dead-{uuid.uuid4().hex}")
                # What is gone already, the run has removed that it belonged to, at its end.
                with contextlib.suppress(FileNotFoundError):
                    self._empty(found.path, dead)

    def _empty(self, room: str, dead: str) -> None:
        self.trying(f"emptying {room}", lambda: self.filesystem.move(room, dead))
        self.trying(f"deleting {dead}", lambda: self.filesystem.delete_dir(dead))

    def write(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write a file so that readers see all of it or nothing, under power loss too (local).

        Raises:
            Fenced: another run has taken this output over, or this one is past decoding.
            StorageError: the file cannot be written, now or at all.
        """
        what = f"writing {self.path(name)}"
        try:
            self.trying(what, lambda: self.write_once(name, data))
        except OSError as error:
            raise StorageError(f"{what} failed: {one_line(error)}") from error

    def write_once(self, name: str, data: bytes | pa.Buffer) -> None:
        """One attempt of `write`."""
        aside = self.path(f"{self.aside}/{uuid.uuid4().hex}")
        if not self.renames:
            self._refuse_if_fenced()
            self._put(self.path(name), data)
            return
        try:
            if self.filesystem.type_name == "local":
                _write_durably(aside, data)
                os.replace(aside, self.path(name))
                _sync_folder(os.path.dirname(self.path(name)))
            else:
                self._put(aside, data)
                self.filesystem.move(aside, self.path(name))
        except FileNotFoundError as error:
            raise self._fenced() from error

    def _put(self, path: str, data: bytes | pa.Buffer) -> None:
        # Closing is what publishes an object, and a stream that is given up closes itself. So
        # nothing may interrupt between open and close, as Ray's cancelling of a task does by an
        # exception in the main thread: what then appeared was an empty object. For the same
        # reason a large file is not begun by a file system that opens only when it writes.
        filesystem, _ = resolve(self.uri, one_put=len(data) <= _ONE_PUT_BYTES)
        with ThreadPoolExecutor(1) as uninterrupted:
            uninterrupted.submit(_put_whole, filesystem, path, data).result()

    def _refuse_if_fenced(self) -> None:
        if not self.fence:
            return
        leases = self.names("", LEASES)
        sealed = not self.room and f"{self.fence:08d}{SEALED}" in leases
        if sealed or any(int(n[:8]) > self.fence for n in leases if n[:8].isdigit()):
            raise self._fenced()

    def _fenced(self) -> Fenced:
        return Fenced(
            f"output {redacted(self.uri)!r} is no longer this run's to write to: another run has "
            "taken it over, this one has ended, or the folder was removed"
        )


def _put_whole(filesystem: fs.FileSystem, path: str, data: bytes | pa.Buffer) -> None:
    stream = filesystem.open_output_stream(path)
    stream.write(data)
    stream.close()


def _write_durably(path: str, data: bytes | pa.Buffer) -> None:
    try:
        with open(path, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError:
        # On a full disk each further attempt would leave another half of a file.
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def _sync_folder(path: str) -> None:
    # The rename itself is durable only when the folder is.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
