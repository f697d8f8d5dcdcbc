"""`status` and `stop` on outputs, without a cluster: leases, heartbeats, committed rows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result

import jobs.output_state
from pipeline.heartbeat import HEARTBEAT
from pipeline.storage import LEASES
from tests.pipeline.refusing import refusing

Call = Callable[..., Result]

HOLDER = """
import sys, time
from pipeline.lease import hold
from pipeline.signals import sigterm_interrupts
from pipeline.storage import Store

with sigterm_interrupts():
    try:
        with hold(Store(sys.argv[1])):
            print("held", flush=True)
            time.sleep(100)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Three committed rows, one of them an error row."""
    folder = tmp_path / "out"
    (folder / LEASES).mkdir(parents=True)
    codes = [None, "deadline", None]
    keys = pa.array([bytes([i] * 16) for i in range(3)], pa.binary(16))
    table = pa.table({"id": [1, 2, 3], "row_key": keys, "error_code": codes})
    pq.write_table(table, folder / "part-1.parquet")
    return folder


@pytest.fixture
def holder(output: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the output."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(output)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def beat(output: Path, age: float = 0.0, **fields: Any) -> None:
    """Leave a heartbeat of that age, in seconds."""
    time = (datetime.now(UTC) - timedelta(seconds=age)).isoformat(timespec="seconds")
    told = {"time": time, "run": "abc-1", "host": "far", "pid": 7, "every_seconds": 10.0}
    live = {"rows_total": 8, "rows_done": 5, "tokens_per_second": 30.5, "speedup": 1.25}
    told |= live | {"eta_seconds": 61.0, "errors_by_code": {"crashed": 2}, "phase": "decoding"}
    (output / HEARTBEAT).write_text(json.dumps(told | fields))


def lease(output: Path, **fields: Any) -> None:
    """Leave a lease of a process of another machine."""
    owner = {"id": "x", "user": "u", "host": "far", "pid": 7, "place": "far away", "born": "1"}
    name = output / LEASES / "00000001.json"
    name.write_text(json.dumps(owner | {"started": "2026-11-21T00:00:00+00:00"} | fields))


def status(admg_batch: Call, output: Path) -> dict[str, Any]:
    result = admg_batch("status", output, "--json")
    assert result.exit_code == 0, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def test_a_run_that_works_tells_how_far_it_is(admg_batch: Call, output: Path) -> None:
    lease(output)
    beat(output)
    told = status(admg_batch, output)
    assert (told["state"], told["phase"]) == ("running", "decoding")
    assert (told["rows_total"], told["rows_done"], told["rows_left"]) == (8, 5, 3)
    assert (told["tokens_per_second"], told["speedup"], told["eta_seconds"]) == (30.5, 1.25, 61.0)
    assert told["errors_by_code"] == {"crashed": 2} and told["job"] is None
    shown = admg_batch("status", output).output
    for part in ("5 done of 8, 3 left", "30.5", "1.25", "1 min 1 s", "2 crashed", "u@far"):
        assert part in shown


def test_a_run_that_is_silent_is_not_called_running(admg_batch: Call, output: Path) -> None:
    lease(output)
    beat(output, age=600)
    told = status(admg_batch, output)
    assert told["state"] == "silent" and told["eta_seconds"] is None
    assert 600 <= told["heartbeat_age_seconds"] < 700


def test_an_earlier_runs_heartbeat_is_not_this_ones(admg_batch: Call, output: Path) -> None:
    lease(output, pid=8)
    beat(output, age=600, phase="interrupted")
    told = status(admg_batch, output)
    assert told["state"] == "running" and told["speedup"] is None and told["phase"] is None


def test_a_run_that_has_ended_tells_what_is_committed(admg_batch: Call, output: Path) -> None:
    lease(output, released=True)
    beat(output, phase="interrupted", reason="SIGTERM")
    told = status(admg_batch, output)
    assert (told["state"], told["phase"], told["reason"]) == (
        "incomplete",
        "interrupted",
        "SIGTERM",
    )
    assert (told["rows_done"], told["rows_left"]) == (3, 5)
    assert told["errors_by_code"] == {"deadline": 1} and told["speedup"] is None


def test_an_output_of_older_runs_has_no_heartbeat(admg_batch: Call, output: Path) -> None:
    told = status(admg_batch, output)
    assert (told["state"], told["rows_done"], told["rows_total"]) == ("incomplete", 3, None)
    assert "3 done" in admg_batch("status", output).output


def test_nothing_is_there_yet(admg_batch: Call, tmp_path: Path) -> None:
    assert status(admg_batch, tmp_path / "none")["state"] == "empty"
    assert not (tmp_path / "none").exists()


def test_a_file_that_is_no_parquet_is_named(admg_batch: Call, output: Path) -> None:
    (output / "x.parquet").write_text("text")
    result = admg_batch("status", output)
    assert result.exit_code == 2 and "x.parquet cannot be read" in result.output


def test_a_storage_that_refuses_for_a_while_is_asked_again(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs.output_state, "Store", refusing)
    state = jobs.output_state.output_state(str(output))
    assert (state.rows_done, state.errors_by_code) == (3, {"deadline": 1})


def test_stop_ends_the_process_that_holds_the_output(
    admg_batch: Call, output: Path, holder: subprocess.Popen[str]
) -> None:
    told = status(admg_batch, output)
    assert told["state"] == "running" and f"process {holder.pid}" in told["holder"]
    result = admg_batch("stop", output)
    assert result.exit_code == 0, result.output
    assert holder.wait(timeout=10) == 130
    assert f"process {holder.pid}" in result.output and "3 rows are kept" in result.output
    assert status(admg_batch, output)["state"] == "incomplete"
    again = admg_batch("stop", output, "--json")
    assert again.exit_code == 0 and json.loads(again.stdout)["stopped"] is False


def test_a_night_at_work_on_parts_of_documents_is_seen_and_stopped(
    admg_batch: Call, tmp_path: Path
) -> None:
    day, stages = tmp_path / "date=2026-11-20", tmp_path / ".stages" / "date=2026-11-20"
    for name in ("parts-1", "parts-2"):
        (stages / name / LEASES).mkdir(parents=True)
    (stages / LEASES).mkdir(parents=True)
    lease(stages)
    beat(stages / "parts-1", age=900, phase="ended")
    told = status(admg_batch, day)
    assert (told["state"], told["phase"]) == ("running", "parts-1: ended")
    beat(stages / "parts-2", pid=8)  # an earlier tick's
    assert status(admg_batch, day)["phase"] == "parts-1: ended"
    beat(stages / "parts-2")
    told = status(admg_batch, day)
    assert (told["phase"], told["rows_done"]) == ("parts-2: decoding", 5)
    beat(stages / "parts-2", age=600)
    assert status(admg_batch, day)["state"] == "silent"
    result = admg_batch("stop", day)
    assert result.exit_code == 4 and "u@far" in result.output
    assert not day.exists()
    (stages / LEASES / "00000001.json").unlink()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(stages)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        result = admg_batch("stop", day)
        assert result.exit_code == 0 and "Stopped" in result.output, result.output
        assert process.wait(timeout=10) == 130
    assert status(admg_batch, day)["state"] == "empty"


def test_stop_leaves_other_machines_alone(admg_batch: Call, output: Path) -> None:
    lease(output)
    result = admg_batch("stop", output)
    assert result.exit_code == 4 and "u@far" in result.output and "--address" in result.output


def test_stop_wants_to_know_what(admg_batch: Call) -> None:
    result = admg_batch("stop")
    assert result.exit_code == 2 and "OUTPUT or --id must be given" in result.output
