"""A program that commits in child processes and kills each at another point of the commit.

`python -m tests.pipeline.faults.crash_points FOLDER` exits with 0 if every child left the output
as it should be. A program of its own, for it forks, which a process with Ray in it must not do.
"""

from __future__ import annotations

import builtins
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

import pipeline.storage
from pipeline.lease import LeaseTimes, hold
from pipeline.ledger import read_ledger
from pipeline.storage import TEMPORARY, Store
from tests.pipeline.outputs import commit_rows, text_of

NEVER_STALE = LeaseTimes(every=3600, stale_after=3600)
POINTS = ("open", "write", "half", "fsync", "replace", "folder", "end")


def die(*_: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


class Half:
    """A file that is killed when half of it is written."""

    def __init__(self, path: str, mode: str) -> None:
        self._file = builtins.open(path, mode)  # noqa: SIM115 (closed by __exit__)

    def __enter__(self) -> Half:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, data: Any) -> None:
        raw = bytes(data)
        self._file.write(raw[: len(raw) // 2])
        self._file.flush()
        die()


class Empty(Half):
    def write(self, data: Any) -> None:
        die()


def arm(point: str) -> None:
    """Kill this process when it comes to that point of a local commit."""
    storage: Any = pipeline.storage
    if point in ("open", "write", "half"):
        storage.open = {"open": die, "write": Empty, "half": Half}[point]
    elif point == "fsync":
        os.fsync = die
    elif point == "replace":
        os.replace = die
    elif point == "folder":
        storage._sync_folder = die


def child(run: Callable[[], None]) -> None:
    """Do it in a process that has to be killed."""
    pid = os.fork()
    if pid == 0:
        try:
            run()
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, status


def commit_and_die(store: Store, point: str) -> None:
    with hold(store, NEVER_STALE) as lease:
        commit_rows(lease.store, "a", "b")
        arm(point)
        commit_rows(lease.store, "c", "d")
        die()


def rows_of(store: Store) -> dict[str, str]:
    """What any reader sees, each row once."""
    tables = [pq.read_table(store.path(name)) for name in store.names(".parquet")]
    pairs = [(r["id"], r["completion"]) for t in tables for r in t.to_pylist()]
    assert len(dict(pairs)) == len(pairs), pairs
    return dict(pairs)


def main(folder: str) -> None:
    texts = {i: text_of(i) for i in "abcd"}
    for number, point in enumerate(POINTS):
        store = Store(str(Path(folder) / point))
        child(lambda store=store, point=point: commit_and_die(store, point))
        done = "abcd" if point in ("folder", "end") else "ab"
        assert rows_of(store) == {i: texts[i] for i in done}, point
        left = [p for p in Path(store.path(TEMPORARY)).rglob("*") if p.is_file()]
        assert len(left) == (point in ("write", "half", "fsync", "replace")), (point, left)
        with hold(store, NEVER_STALE) as lease:  # at once: its owner is known to be dead
            assert lease.fence == 2
            assert not [p for p in Path(store.path(TEMPORARY)).rglob("*") if p.is_file()], point
            if done == "ab":
                commit_rows(lease.store, "c", "d")
        assert rows_of(store) == texts, point
        assert read_ledger(store, "id").rows == 4
        print(number, point, "is survived")


if __name__ == "__main__":
    main(sys.argv[1])
