"""The heartbeat beside the output: what it says, when, and that it can fail nothing."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pipeline.counters import Counters, Reading
from pipeline.heartbeat import HEARTBEAT, beating, read_heartbeat
from pipeline.lease import hold
from pipeline.progress import Tracker
from pipeline.signals import Terminated
from pipeline.storage import Store
from tests.pipeline.outputs import PRINT
from tests.pipeline.s3 import BUCKET, S3Server


def soon(what: Callable[[], bool]) -> bool:
    """Whether something comes true before anybody's patience ends."""
    end = time.monotonic() + 30
    while not what() and time.monotonic() < end:
        time.sleep(0.02)
    return what()


def beat_of(store: Store) -> dict[str, Any]:
    return read_heartbeat(store) or {}


@pytest.mark.parametrize("where", ["local", "s3"])
def test_it_says_how_far_the_run_is(
    where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if where == "s3":
        server: S3Server = request.getfixturevalue("s3")
        assert server
    store = Store(str(tmp_path / "out") if where == "local" else f"s3://{BUCKET}/beat/out")
    assert read_heartbeat(store) is None
    tracker = Tracker(None)
    with hold(store) as lease, beating(lease, PRINT, tracker):
        for phase in ("checking", "starting"):
            tracker.phase(phase, rows_total=100, rows_done=20)
            assert soon(lambda phase=phase: beat_of(store).get("phase") == phase)
        done = Counters(40, 4, 600, 400, 200, 500.0, 3.0, 2.0, errors={"deadline": 3})
        tracker.update(Reading(2, done, 8.0, alive=1), reused=20)
        assert soon(lambda: beat_of(store)["phase"] == "decoding")
        beat = beat_of(store)
        tracker.phase("finishing", rows_done=100)
        lease.seal()
    progress = {k: v for k, v in beat.items() if k not in ("time", "seconds", "host")}
    assert progress == {
        "run": f"{PRINT.digest[:12]}-00000001",
        "pid": os.getpid(),
        "every_seconds": 10.0,
        "rows_total": 100,
        "rows_done": 60,
        "rows_error": 4,
        "prompt_tokens": 600,
        "completion_tokens": 400,
        "tokens_per_second": 50.0,
        "prompt_tokens_per_second": 75.0,
        "mean_acceptance_length": 2.5,
        "speedup": 1.5,
        "actors": 2,
        "actors_alive": 1,
        "errors_by_code": {"deadline": 3},
        "eta_seconds": 8.0,
        "phase": "decoding",
        "missed_beats": 0,
    }
    assert abs((datetime.now(UTC) - datetime.fromisoformat(beat["time"])).total_seconds()) < 60
    last = beat_of(store)
    assert (last["phase"], last["reason"], last["rows_done"]) == ("ended", "", 100)


def test_it_beats_while_nothing_else_happens(tmp_path: Path) -> None:
    store, tracker = Store(str(tmp_path)), Tracker(None)
    with hold(store) as lease, beating(lease, PRINT, tracker, every=0.01):
        seen = set()

        def one_more() -> bool:
            seen.add((tmp_path / HEARTBEAT).stat().st_mtime_ns)
            return len(seen) > 3

        assert soon((tmp_path / HEARTBEAT).exists)
        assert soon(one_more)


@pytest.mark.parametrize(
    ("error", "phase", "reason"),
    [
        (KeyboardInterrupt(), "interrupted", "Ctrl-C"),
        (Terminated(), "interrupted", "SIGTERM"),
        (RuntimeError("s3://me:secret@b/x failed\nat line 1"), "failed", "s3://***@b/x failed"),
        (MemoryError(), "failed", "MemoryError"),
    ],
)
def test_it_says_how_a_run_ended(
    tmp_path: Path, error: BaseException, phase: str, reason: str
) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(type(error)), hold(store) as lease, beating(lease, PRINT, Tracker(None)):
        raise error
    last = beat_of(store)
    assert (last["phase"], last["reason"]) == (phase, reason)
    assert "secret" not in (tmp_path / HEARTBEAT).read_text()


def test_one_that_cannot_be_written_is_counted_and_fails_nothing(tmp_path: Path) -> None:
    store, tracker = Store(str(tmp_path)), Tracker(None)
    with hold(store) as lease, beating(lease, PRINT, tracker, every=0.01):
        assert soon((tmp_path / HEARTBEAT).exists)
        room = tmp_path / lease.store.aside
        shutil.rmtree(room)
        (tmp_path / HEARTBEAT).unlink()
        tracker.phase("starting")
        time.sleep(0.2)
        assert not (tmp_path / HEARTBEAT).exists()
        room.mkdir(parents=True)
        assert soon((tmp_path / HEARTBEAT).exists)
        assert beat_of(store)["missed_beats"] > 0
    assert beat_of(store)["phase"] == "ended"


def test_a_heartbeat_that_somebody_else_has_written(tmp_path: Path) -> None:
    for content in ("{", "[]", '{"phase": "decoding"}'):
        (tmp_path / "_admg").mkdir(exist_ok=True)
        (tmp_path / HEARTBEAT).write_text(content)
        with pytest.raises(ValueError, match=r"heartbeat\.json was changed by somebody else"):
            read_heartbeat(Store(str(tmp_path)))
