"""The heartbeat: `_admg/heartbeat.json` in the output says how far its run is, for who looks later.

It is written whole or not at all, about every ten seconds, when the phase changes, and when the run
ends, however it ends. Its time says whether it is fresh: a process that was killed leaves its last
one. A heartbeat that cannot be written is counted in the next one; it never fails a run.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from pipeline.errors import PipelineError
from pipeline.fingerprint import Fingerprint
from pipeline.lease import Lease
from pipeline.names import DIGEST_CHARS
from pipeline.progress import Progress, Tracker
from pipeline.redaction import redacted
from pipeline.signals import Terminated
from pipeline.storage import STATE, Store

HEARTBEAT = f"{STATE}/heartbeat.json"
BEAT_SECONDS = 10.0
ENDS = ("ended", "interrupted", "failed")
# A storage that hangs must not hold up the end of a run, and a beat that is late is of no use.
_PATIENCE_SECONDS = 1.0
_AGAIN_SECONDS = 1.0
_LAST_SECONDS = 10.0
_READS = 4
_READ_AGAIN_SECONDS = 0.1


class Heartbeat:
    """Writes the latest `Progress` from a thread of its own.

    Args:
        store: gives the store that may write at this moment (the lease's changes when a run ends).
        run: names the run.
        every: seconds between two beats.
    """

    def __init__(self, store: Callable[[], Store], run: str, every: float = BEAT_SECONDS) -> None:
        self._store, self._every = store, every
        self._fixed = {"run": run, "host": socket.gethostname(), "pid": os.getpid()}
        self._latest, self._told = Progress(), time.monotonic()
        self._end: dict[str, str] = {}
        self._missed = 0
        self._news, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def update(self, progress: Progress) -> None:
        """Take in how far the run is; a new phase is written at once."""
        turned = progress.phase != self._latest.phase
        self._latest, self._told = progress, time.monotonic()
        if turned:
            self._news.set()

    def end(self, phase: str, reason: str = "") -> None:
        """Write the last one: `phase` is one of `ENDS`."""
        self._end = {"phase": phase, "reason": redacted(reason)}
        self._ended.set()
        self._news.set()
        self._thread.join(timeout=_LAST_SECONDS)

    def _beat(self) -> None:
        pause = 0.0
        while True:
            self._news.wait(pause)
            self._news.clear()
            last = self._ended.is_set()
            written = self._write()
            if last:
                if not written:
                    self._write()  # the store may just have changed hands
                return
            pause = self._every if written else _AGAIN_SECONDS

    def _write(self) -> bool:
        store = self._store()
        store = replace(store, patience=replace(store.patience, seconds=_PATIENCE_SECONDS))
        try:
            store.write(HEARTBEAT, json.dumps(self._content(), indent=2).encode() + b"\n")
        except (PipelineError, OSError, pa.ArrowException):
            self._missed += 1
            return False
        return True

    def _content(self) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        known = {"time": now, **self._fixed, "every_seconds": self._every}
        latest = replace(self._latest, seconds=self._latest.seconds + time.monotonic() - self._told)
        return known | asdict(latest) | {"missed_beats": self._missed} | self._end


@contextmanager
def beating(
    lease: Lease, fingerprint: Fingerprint, tracker: Tracker, every: float = BEAT_SECONDS
) -> Iterator[None]:
    """Heartbeats of everything that happens inside, the end included.

    A run is named as its files are: by the job's fingerprint and the lease's number.
    """
    name = f"{fingerprint.digest[:DIGEST_CHARS]}-{lease.fence:08d}"
    heartbeat = Heartbeat(lambda: lease.store, name, every)
    tracker.listen(heartbeat.update)
    try:
        yield
    except KeyboardInterrupt as error:
        heartbeat.end("interrupted", "SIGTERM" if isinstance(error, Terminated) else "Ctrl-C")
        raise
    except BaseException as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        heartbeat.end("failed", lines[0])
        raise
    heartbeat.end("ended")


def read_heartbeat(store: Store) -> dict[str, Any] | None:
    """The latest heartbeat of an output, by the names of its fields; None where there is none.

    `phase` is one of `pipeline.progress.Phase` while the run works and of `ENDS` after it, then
    with a `reason`. All else is described at `Progress`.

    Raises:
        ValueError: it is no heartbeat: somebody else has changed it.
        StorageError: the storage cannot be reached.
    """
    for left in reversed(range(_READS)):
        try:
            data = store.read(HEARTBEAT)
        except FileNotFoundError:
            return None
        try:
            found = json.loads(data)
            break
        except ValueError as error:
            if not left:
                broken = f"{store.uri}: {HEARTBEAT} was changed by somebody else"
                raise ValueError(broken) from error
            # Object stores are asked for the size first: the next beat may be of another one.
            time.sleep(_READ_AGAIN_SECONDS)
    if not isinstance(found, dict) or not {"time", "run", "phase"} <= found.keys():
        raise ValueError(f"{store.uri}: {HEARTBEAT} was changed by somebody else")
    return found
