"""Faults 1 and 5: the driver is killed, at any part of a run and at any point of a commit."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from admg.config import EngineConfig
from pipeline.blocks import calls_in_flight, rows_per_call
from pipeline.keys import row_key
from pipeline.manifest import read_manifest
from pipeline.run import run
from tests.pipeline.faults.faulty import HANG, FaultyStandIn
from tests.pipeline.faults.killing import committed, kill_when
from tests.pipeline.faults.oracle import check_output, config_of, prompts
from tests.pipeline.faults.processes import ROOT
from tests.pipeline.standin import StandIn

ROWS, BLOCK = 96, 4


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("batch", [8, pytest.param(2, marks=pytest.mark.slow)])
def test_fault_01_the_driver_is_killed_at_the_start_in_the_middle_and_at_the_last_block(
    tmp_path: Path, batch: int
) -> None:
    """Each run ends by SIGKILL, the last one by itself. Nothing is lost, little is done again.

    With a batch of 2 a block is what several calls have decoded.
    """
    table = prompts(ROWS, {ROWS - 1: HANG})  # the last block never ends while the engine hangs
    engine = EngineConfig(max_num_seqs=batch)
    config = config_of(tmp_path, table, rows_per_block=BLOCK, engine=engine)
    log = str(tmp_path / "log")
    slow = StandIn(step_seconds=0.05, log=log)
    output = tmp_path / "out"

    kill_when(tmp_path, config, slow, lambda: (output / "_admg" / "lease").exists())
    assert committed(output) == 0
    kill_when(tmp_path, config, slow, lambda: committed(output) >= 3 * BLOCK)
    assert 3 * BLOCK <= committed(output) < ROWS
    hangs = FaultyStandIn(log=log)
    kill_when(tmp_path, config, hangs, lambda: committed(output) >= ROWS - 3 * BLOCK)
    assert not (output / "_SUCCESS").exists()

    report = run(config, engine_factory=StandIn(log=log))
    assert report.rows_reused >= ROWS - 6 * BLOCK
    check_output(config, table)
    assert read_manifest(str(output))["run"]["rows_reused"] == report.rows_reused
    # The bound that is promised: per death, what an actor had in flight, and blocks on their way
    # from it to their file, one of which may wait for its last rows.
    call = rows_per_call(config, BLOCK)
    most = calls_in_flight(config, call) * call + 2 * BLOCK
    again = Counter(StandIn(log=log).submitted())
    texts = table["prompt"].to_pylist()
    assert set(again) == {row_key(i, texts[i]).hex() for i in range(ROWS)}
    assert sum(again.values()) - ROWS <= 3 * most


def test_fault_05_a_commit_is_killed_at_each_of_its_points(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.pipeline.faults.crash_points", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("is survived") == 7
