"""One run per output: who comes second is told who holds it, who is dead is replaced and shut out.

The seconds here are how often a lease is renewed and when silence counts; no test asks how long
anything took.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
from fsspec.implementations.memory import MemoryFileSystem

import pipeline.lease
import pipeline.owner
from pipeline.errors import Fenced, Locked, StorageError
from pipeline.holder import holder_of
from pipeline.lease import Lease, LeaseTimes, _acquire, _overwrite, hold
from pipeline.owner import Owner
from pipeline.retry import Patience
from pipeline.storage import LEASES, TEMPORARY, Store
from tests.pipeline.faults.clocks import wrong_clock
from tests.pipeline.outputs import commit_rows
from tests.pipeline.s3 import BUCKET

QUICK = LeaseTimes(every=0.05, stale_after=0.6)
NEVER_STALE = LeaseTimes(every=0.05, stale_after=3600)


@pytest.fixture(params=["local", "object store", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return Store(str(tmp_path / "out"))
    if request.param == "s3":
        request.getfixturevalue("s3")
        return Store(f"s3://{BUCKET}/{uuid.uuid4().hex}/out")
    return Store(f"memory://{uuid.uuid4().hex}/out")


def silent(store: Store) -> Lease:
    """A lease whose owner lives and does nothing, as a process that sleeps."""
    lease = _acquire(store, QUICK)
    lease.store.prepare()
    return lease


def test_who_comes_second_is_told_who_was_first(store: Store) -> None:
    with hold(store, NEVER_STALE) as first:
        with pytest.raises(Locked, match=rf"locked by .*@.* \(process {os.getpid()}, since "):
            hold(store, NEVER_STALE).__enter__()
        first.check()
        first.store.write("x", b"1")
    with hold(store, NEVER_STALE) as second:
        assert second.fence == first.fence + 1


@pytest.mark.parametrize("how", [None, ValueError, KeyboardInterrupt, SystemExit])
def test_it_is_free_again_however_a_run_ends(store: Store, how: type[BaseException] | None) -> None:
    try:
        with hold(store, NEVER_STALE) as first:
            if how is not None:
                raise how
    except BaseException as error:
        assert how is not None and isinstance(error, how)
    with pytest.raises(Fenced):
        first.store.write("late", b"")
    assert not store.exists("late")
    with hold(store, NEVER_STALE):
        pass


def test_a_dead_process_of_this_machine_is_replaced_at_once(store: Store) -> None:
    code = (
        "import os, sys; from pipeline.lease import *; from pipeline.lease import _acquire;"
        "_acquire(Store(sys.argv[1]), LeaseTimes()); os._exit(1)"
    )
    if "://" in store.uri:
        with subprocess.Popen([sys.executable, "-c", ""]) as process:
            process.wait()
        owner = replace(Owner.this_process(), pid=process.pid)
        write_lease(store, 1, json.dumps(asdict(owner)).encode())
    else:
        subprocess.run([sys.executable, "-c", code, store.uri], check=False)
    with hold(store, NEVER_STALE) as lease:
        assert lease.fence == 2


@pytest.mark.parametrize("listings", [1, 2])
def test_who_starts_while_another_one_looks_keeps_its_lease(store: Store, listings: int) -> None:
    """Whatever the second one has listed by then, and even if the first has committed."""
    first = hold(store, NEVER_STALE)
    left = iter(range(listings))

    class Slow(Store):
        def names(self, suffix: str, folder: str = "") -> list[str]:
            found = Store.names(self, suffix, folder)
            if next(left, None) == listings - 1:
                commit_rows(first.__enter__().store, "a")
            return found

    with pytest.raises(Locked, match="locked by"):
        hold(Slow(store.uri), NEVER_STALE).__enter__()
    first.__exit__(None, None, None)
    assert [name.split("-")[2] for name in store.names(".parquet")] == ["00000001"]


def write_lease(store: Store, number: int, data: bytes) -> None:
    store.filesystem.create_dir(store.path(LEASES), recursive=True)
    with store.filesystem.open_output_stream(store.path(f"{LEASES}/{number:08d}.json")) as out:
        out.write(data)


def test_claim_seal_and_release_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(f"memory://{uuid.uuid4().hex}/out", patience=Patience(60, first=0.01))
    whole = MemoryFileSystem._open
    failed: set[str] = set()

    def fail(self: MemoryFileSystem, path: str, mode: str = "rb", **more: object) -> object:
        if mode == "wb" and LEASES in path and path not in failed:
            failed.add(path)
            raise OSError("When writing: AWS Error SLOW_DOWN: Reduce your request rate")
        return whole(self, path, mode, **more)

    monkeypatch.setattr(MemoryFileSystem, "_open", fail)
    with hold(store, LeaseTimes(every=3600, stale_after=3600)) as lease:
        lease.seal()
        assert len(failed) == 2
        failed.clear()
    assert len(failed) == 2
    assert not lease.lost
    assert holder_of(store) is None


def test_renewing_is_tried_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with hold(store, NEVER_STALE) as lease:
        renewed = threading.Semaphore(0)
        failures = iter(range(3))
        whole = Store.trying

        def fail(self: Store, what: str, action: Callable[[], object]) -> object:
            if next(failures, None) is not None:
                raise StorageError(what)
            done = whole(self, what, action)
            if what.startswith("writing"):
                renewed.release()
            return done

        monkeypatch.setattr(Store, "trying", fail)
        assert renewed.acquire(timeout=30)
        monkeypatch.undo()
        assert not lease.lost


def test_a_claim_that_is_made_twice_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that is lost on its way: nobody can say whose the file is."""
    store = Store(str(tmp_path / "out"), patience=Patience(60, first=0.01))
    failures = iter(range(1))

    def lost(path: str, mode: str) -> Any:
        if mode == "x" and next(failures, None) is not None:
            Path(path).touch()
            raise OSError(errno.ETIMEDOUT, "Connection timed out", path)
        return open(path, mode)

    monkeypatch.setattr("pipeline.lease.open", lost, raising=False)
    with hold(store, QUICK) as lease:
        assert lease.fence == 2
        assert store.names("", LEASES) == ["00000002.json"]


@pytest.mark.parametrize("data", [b"", b'{"id": "torn', b'{"of": "another version"}'])
def test_what_nobody_renews_is_taken_over(store: Store, data: bytes) -> None:
    write_lease(store, 41, data)
    with hold(store, QUICK) as lease:
        assert lease.fence == 42


@pytest.mark.parametrize("outages", [(0,), (0, 1), (5,)], ids=str)
def test_an_outage_is_no_silence(store: Store, outages: tuple[int, ...]) -> None:
    """Nobody could look, nor renew: an owner that goes on after it keeps its lease."""
    first = silent(store)
    looks = iter(range(10**6))
    seconds = 0.0

    class Failing(Store):
        def read(self, name: str) -> bytes:
            nonlocal seconds
            look = next(looks)
            if look in outages:
                seconds += 3600
            if look == max(outages) + 2:
                _overwrite(store, first._path, replace(first._owner, beat=1))
            return Store.read(self, name)

    with ticking(lambda: seconds), pytest.raises(Locked):
        hold(Failing(store.uri), LeaseTimes(every=0.02, stale_after=60)).__enter__()
    first.check()


@contextmanager
def ticking(more: Callable[[], float]) -> Iterator[None]:
    """A clock that runs for this module's leases only, and is put forward by so many seconds."""
    clock = ModuleType("time")
    clock.__dict__.update(vars(time) | {"monotonic": lambda: time.monotonic() + more()})
    with mock.patch.object(pipeline.lease, "time", clock):
        yield


def test_an_owner_that_wakes_up_is_shut_out(store: Store) -> None:
    """Old workers and the old driver can neither commit nor harm those who came after them."""
    old = silent(store)
    commit_rows(old.store, "a")
    with hold(store, QUICK) as new:
        for late in (old.store, old.store.seal):
            with pytest.raises(Fenced):
                commit_rows(late if isinstance(late, Store) else late(), "b")
        with pytest.raises(Fenced, match="taken over by another run"):
            old.check()
        assert old.lost
        with pytest.raises(Fenced):
            old.seal()
        old.end()
        new.check()
        commit_rows(new.store, "c")
        theirs = [name for name in store.names(".parquet") if "-00000002-" in name]
        for name in (*theirs, "never there"):
            with pytest.raises(Fenced):
                old.store.delete(name)
        assert set(theirs) < set(store.names(".parquet"))
        last = new.seal()
        new.store.delete("never there")
        new.store.write("x", b"")
        with pytest.raises(Fenced):
            replace(last, room="").delete("x")
        last.delete("x")
        assert not store.exists("x")
        with pytest.raises(Fenced):
            commit_rows(replace(last, room=""), "late")
        commit_rows(last, "d")
    names = [name.split("-")[2] for name in store.names(".parquet")]
    assert sorted(names) == ["00000001", "00000002", "00000002"]
    assert not store.names("", TEMPORARY)


def test_a_renewed_lease_notices_that_it_is_lost(store: Store) -> None:
    with hold(store, QUICK) as lease:
        write_lease(store, lease.fence + 1, b"{}")
        assert lease._lost.wait(timeout=30)


# fsspec's memory is one object that its readers and writers share, whatever thread they are in.
@pytest.mark.parametrize("store", ["local", "s3"], indirect=True)
def test_of_many_starts_at_once_one_wins(store: Store) -> None:
    inside = threading.Semaphore(1)
    fences: list[int] = []
    problems: list[str] = []
    start = threading.Barrier(6)

    def contend() -> None:
        start.wait()
        for _ in range(200):
            try:
                with hold(store, NEVER_STALE) as lease:
                    if not inside.acquire(blocking=False):
                        problems.append("two at once")
                        return
                    fences.append(lease.fence)
                    lease.store.write(f"by-{lease.fence}", b"")
                    inside.release()
                    return
            except Locked:
                continue
            except Exception as error:
                problems.append(repr(error))
                return
        problems.append("never won")

    threads = [threading.Thread(target=contend) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(set(fences)) == 6
    assert fences == sorted(fences)


def test_a_folder_that_appears_while_it_is_listed_is_no_error(tmp_path: Path) -> None:
    folder, over = tmp_path / "out", threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            folder.mkdir()
            folder.rmdir()

    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        assert not any(Store(str(folder)).names("") for _ in range(1000))
    finally:
        over.set()
        other.join()


def test_a_file_in_a_folders_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("no folder")
    with pytest.raises(NotADirectoryError):
        Store(str(tmp_path / "out")).names("")


def test_rooms_that_two_empty_at_once_are_emptied(tmp_path: Path) -> None:
    store = Store(str(tmp_path), fence=9)
    for number in range(200):
        (tmp_path / TEMPORARY / f"{number % 9:08d}-{number}").mkdir(parents=True)
    with ThreadPoolExecutor(4) as several:
        for emptied in [several.submit(store.shut) for _ in range(4)]:
            emptied.result()
    assert not list((tmp_path / TEMPORARY).iterdir())


def test_numbers_go_on_where_the_state_folder_was_removed(store: Store) -> None:
    with hold(store, QUICK) as lease:
        commit_rows(lease.store, "a")
    for name in store.names("", LEASES):
        store.delete(f"{LEASES}/{name}")
    with hold(store, QUICK) as lease:
        assert lease.fence == 2


@pytest.mark.parametrize(("hours", "jump"), [(-500_000, 0), (1_500_000, 0), (0, 1), (0, -1)])
def test_fault_28_clocks_that_are_wrong_or_jump_change_nothing(
    store: Store, hours: int, jump: int
) -> None:
    """An owner whose clock is decades off, or is set between two renewals, is neither taken for
    dead nor for ever alive; nor does it matter what the clock of those who ask does.
    """
    began = datetime.now(UTC) + timedelta(hours=hours)
    with wrong_clock(hours, jump):
        skewed = hold(store, NEVER_STALE)
        skewed.__enter__()
        with pytest.raises(Locked, match=f"since {began.year}|since {began.year + 1}"):
            hold(store, NEVER_STALE).__enter__()
        with wrong_clock(-hours, jump), pytest.raises(Locked):
            hold(store, NEVER_STALE).__enter__()
    skewed.__exit__(None, None, None)
    with wrong_clock(hours, jump):
        silent(store)
    with wrong_clock(-hours, jump), hold(store, QUICK) as lease:
        assert lease.fence == 3


def test_processes_are_told_apart_by_when_they_began() -> None:
    owner = Owner.this_process()
    assert not owner.is_gone
    assert replace(owner, born="1").is_gone
    assert not replace(owner, born="1", place="another machine").is_gone
    assert not replace(owner, born="").is_gone


@pytest.mark.parametrize("hidden", [PermissionError, None])
def test_a_process_that_proc_hides_is_not_gone(
    monkeypatch: pytest.MonkeyPatch, hidden: type[OSError] | None
) -> None:
    """As another user's is where /proc is mounted with `hidepid`; nor is it certain to live."""
    owner = Owner.this_process()

    def missing(path: Path, *_: object) -> str:
        raise FileNotFoundError(path)

    def kill(pid: int, number: int) -> None:
        assert (pid, number) == (owner.pid, 0)
        if hidden is not None:
            raise hidden

    monkeypatch.setattr(pipeline.owner, "_place", lambda: owner.place)
    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(os, "kill", kill)
    assert not owner.is_gone
    assert not owner.is_here
