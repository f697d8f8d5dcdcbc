"""The lease: one run per output at a time, and a number that tells the runs apart.

A lease is a file in `_admg/lease/`, named by its number, the fence. Whoever wants the output makes
the file with the next number and looks again: if anybody else's file has that number or a higher
one, it gives way. On a local disk making the file is exclusive (O_EXCL). Object stores have no such
call in pyarrow; there every start makes a file of its own name, so that of two starts at least one
sees the other (PUT and LIST must be consistent, as those of S3, GCS and Azure are) and at most one
stays. What is not covered: a file system whose listings lag behind, an NFS mount with long
attribute caches for one.

The owner renews its file every few seconds. No clocks are compared: who finds a lease watches it,
and takes over when it has not changed for `stale_after` of its own seconds, in which it could look
all the time, or at once when the owner was a process of this machine that is gone. The old owner,
should it wake up, finds that its room is gone (see `storage`) and that a higher number is there.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

from pyarrow import fs

from pipeline.errors import Fenced, Locked, StorageError
from pipeline.names import SUFFIX, FileName
from pipeline.owner import Owner
from pipeline.storage import LEASES, SEALED, Store

_TRIES = 20


@dataclass(frozen=True, slots=True)
class LeaseTimes:
    """Seconds between renewals, and of silence after which a lease is taken over."""

    every: float = 5.0
    stale_after: float = 60.0


class Lease:
    """A lease that is held: `fence` is its number, `store` writes with it."""

    def __init__(self, store: Store, fence: int, name: str, owner: Owner) -> None:
        self.fence = fence
        self.store = replace(store, fence=fence)
        self._name = name
        self._path = f"{LEASES}/{name}"
        self._owner = owner
        self._lost = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def lost(self) -> bool:
        """Whether another run is known to have taken over."""
        return self._lost.is_set()

    def check(self) -> None:
        """Look whether the lease still holds, before anything that cannot be taken back.

        Raises:
            Fenced: it does not.
        """
        names = self.store.names("", LEASES)
        if self._name not in names or any(_number(n) > self.fence for n in names):
            self._lost.set()
        if self.lost:
            raise Fenced(
                f"output {self.store.uri!r} was taken over by another run while this one was "
                "silent; that run does the rest"
            )

    def seal(self) -> Store:
        """Shut out this run's own workers, stragglers included; returns the driver's store."""
        self.check()
        self.store = self.store.seal()
        return self.store

    def start(self, every: float) -> None:
        """Renew the lease from a thread."""
        self._thread = threading.Thread(
            target=self._renew, args=(every,), name="lease", daemon=True
        )
        self._thread.start()

    def end(self) -> None:
        """Stop renewing, shut out what may still write, and say that the output is free."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=30)
        try:
            self.check()
            self.store.shut()
            _overwrite(self.store, self._path, replace(self._owner, released=True))
        except (Fenced, StorageError, OSError):
            # Gone or out of reach: then nobody waits for this file, or it becomes stale.
            self._lost.set()

    def _renew(self, every: float) -> None:
        hasty = replace(self.store, patience=replace(self.store.patience, seconds=every))
        while not self._stop.wait(every):
            self._owner = replace(self._owner, beat=self._owner.beat + 1)
            try:
                self.check()
                if not self._stop.is_set():  # storage may have kept it waiting until after `end`
                    _overwrite(hasty, self._path, self._owner)
            except Fenced:
                return
            except (StorageError, OSError):
                continue  # storage may come back before the lease is stale


@contextmanager
def hold(store: Store, times: LeaseTimes | None = None) -> Iterator[Lease]:
    """Hold an output's lease; it is released however the block is left.

    Raises:
        Locked: another run holds it, by name.
    """
    times = times or LeaseTimes()
    lease = _acquire(store, times)
    try:
        lease.store.prepare()
        lease.start(times.every)
        yield lease
    finally:
        lease.end()


def _acquire(store: Store, times: LeaseTimes) -> Lease:
    owner = Owner.this_process()
    for _ in range(_TRIES):
        # Before the leases: who claims one later, and commits, must not make ours the higher one.
        of_files = _fences_of_files(store)
        names = _leases(store)
        last = max(map(_number, names), default=0)
        latest = [name for name in names if _number(name) == last]
        if not all(_is_free(store, name, times) for name in latest):
            continue  # it gave way to another one that this look has missed
        fence = 1 + max([last, *of_files])
        claim = _claim(store, fence, owner)
        if claim is not None:
            for name in store.names("", LEASES):
                if _number(name) < fence:
                    store.delete(f"{LEASES}/{name}")
            return Lease(store, fence, claim, owner)
        time.sleep(random.uniform(0.01, 0.3))
    raise Locked(f"output is {store.uri!r}: too many runs start on it at this moment")


def _number(name: str) -> int:
    return int(name[:8]) if name[:8].isdigit() else 0


def _leases(store: Store) -> list[str]:
    return [n for n in store.names("", LEASES) if not n.endswith(SEALED)]


def _fences_of_files(store: Store) -> list[int]:
    """The numbers in the results' names: they outlive a state folder that somebody removed."""
    parsed = map(FileName.parse, store.names(SUFFIX))
    return [name.fence for name in parsed if name is not None]


def _claim(store: Store, fence: int, owner: Owner) -> str | None:
    """Make the lease file of this number; its name, or None where somebody else was faster."""
    local = store.filesystem.type_name == "local"
    name = f"{fence:08d}.json" if local else f"{fence:08d}-{owner.id}.json"
    path = store.path(f"{LEASES}/{name}")
    store.make_folder(LEASES)
    if local:
        try:
            # Made first and filled after: only what is made is exclusive, and where making it is
            # tried again, and finds what it made before, the claim is given up, never shared.
            store.trying(f"making {path}", lambda: open(path, "x").close())
        except FileExistsError:
            return None
    _overwrite(store, f"{LEASES}/{name}", owner)
    if any(_number(other) >= fence for other in _leases(store) if other != name):
        store.delete(f"{LEASES}/{name}")
        return None
    return name


def _overwrite(store: Store, name: str, owner: Owner) -> None:
    """Renew in place, without a room of one's own; who reads half of it sees it change."""
    path, data = store.path(name), json.dumps(asdict(owner)).encode()

    def whole() -> None:
        if isinstance(store.filesystem, fs.LocalFileSystem):
            with open(path, "r+b") as stream:  # never makes a file that was taken away
                stream.write(data)
                stream.truncate()
            return
        with store.filesystem.open_output_stream(path) as out:
            out.write(data)

    store.trying(f"writing {path}", whole)


def _is_free(store: Store, name: str, times: LeaseTimes) -> bool:
    """Wait until this lease is released, its owner gone, or silent for too long.

    Silence is what looks without a long gap between them have found. A gap (storage that fails, a
    process that sleeps) says nothing of the owner, whom the same may have kept from renewing: after
    it the silence begins anew.

    False where the file itself has vanished: that says nothing about who holds the output now.

    Raises:
        Locked: its owner renewed it.
    """
    first, looked, silent = _read(store, name), time.monotonic(), 0.0
    now = first
    while True:
        owner = _parse(now)
        if now is None:
            return False
        if owner is not None and (owner.released or owner.is_gone):
            return True
        if now != first:
            raise Locked(
                f"output is {store.uri!r}: locked by {owner or 'another run'}. Wait for that run, "
                "or stop it; this command then goes on from what is committed"
            )
        if silent >= times.stale_after:
            return True
        time.sleep(min(0.5, times.every / 4))
        now = _read(store, name)
        gap = time.monotonic() - looked
        looked += gap
        silent = silent + gap if gap < times.stale_after / 4 else 0.0


def _read(store: Store, name: str) -> bytes | None:
    try:
        return store.read(f"{LEASES}/{name}")
    except FileNotFoundError:
        return None


def _parse(data: bytes | None) -> Owner | None:
    try:
        return Owner(**json.loads(data or b""))
    except (ValueError, TypeError):
        return None  # being written at this moment
