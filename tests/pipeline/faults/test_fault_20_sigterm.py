"""Fault 20: SIGTERM, as `ray job stop` sends it, with little and with enough time to obey."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
import ray

from pipeline.attempts import FOLDER
from pipeline.heartbeat import read_heartbeat
from pipeline.run import run
from pipeline.storage import LEASES, Store
from tests.pipeline.faults.oracle import check_output, config_of, prompts
from tests.pipeline.faults.processes import program, wait_for_files
from tests.pipeline.standin import StandIn

TABLE = prompts(96)
COMMAND = """
import functools, pipeline.run
from jobs.cli import main
from tests.pipeline.standin import StandIn
pipeline.run.run = functools.partial(pipeline.run.run, engine_factory=StandIn(step_seconds=0.1))
main(["run", "--input", {input!r}, "--output", {output!r}, "--model", "stand-in",
      "--max-tokens", "12", "--max-num-seqs", "8", "--rows-per-block", "4"])
"""


@pytest.mark.parametrize("grace", [pytest.param(3, marks=pytest.mark.slow), 60])
def test_fault_20_a_run_that_is_told_to_stop(tmp_path: Path, grace: int, ray_cluster: None) -> None:
    config = config_of(tmp_path, TABLE, rows_per_block=4)
    code = COMMAND.format(input=config.input[0], output=config.output)
    # As in a Ray job, whose driver joins the cluster that it was submitted to.
    address = str(ray.get_runtime_context().gcs_address)
    with program(code, RAY_ADDRESS=address) as process:
        wait_for_files(tmp_path / "out", 3, process)
        process.send_signal(signal.SIGTERM)
        if grace == 3:
            # Whether it is done by then or not, what comes next must not see the difference.
            time.sleep(grace)
            process.kill()
        words, _ = process.communicate(timeout=grace)
    if grace == 60:
        assert process.returncode == 130, words
        assert "Interrupted: " in words and "To go on, give the same command" in words
        assert "Traceback" not in words
        assert (tmp_path / "out" / FOLDER / "stopped.json").exists()
        (lease,) = (tmp_path / "out" / LEASES).iterdir()
        assert json.loads(lease.read_text())["released"]
        beat = read_heartbeat(Store(config.output))
        assert beat is not None
        assert (beat["phase"], beat["reason"]) == ("interrupted", "SIGTERM")
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    report = run(config, engine_factory=StandIn())
    assert 12 <= report.rows_reused < 96
    rows = check_output(config, TABLE)
    # Nobody is suspected of what somebody wanted.
    assert grace == 3 or {row["attempts"] for row in rows.values()} == {1}
