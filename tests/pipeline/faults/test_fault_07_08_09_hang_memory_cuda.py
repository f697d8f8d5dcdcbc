"""Faults 7, 8 and 9: rows that hang, memory that runs out, a GPU whose state is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.run import run
from tests.pipeline.faults.faulty import ENDLESS, GRIP, HANG, HUGE, FaultyStandIn, times
from tests.pipeline.faults.oracle import check_output, config_of, prompts

pytestmark = pytest.mark.usefixtures("ray_cluster")
SHORT = {"row_deadline_seconds": 0.5, "token_deadline_seconds": 0.02}


def test_fault_07_a_row_that_hangs_misses_its_deadline(tmp_path: Path) -> None:
    table = prompts(24, {9: HANG})
    config = config_of(tmp_path, table, **SHORT)
    run(config, engine_factory=FaultyStandIn(folder=str(tmp_path)))
    rows = check_output(config, table, {9: "deadline"})
    assert "the engine stands still" in rows[9]["error_message"]


@pytest.mark.slow
def test_fault_07_a_row_that_hangs_with_pythons_lock_is_found(tmp_path: Path) -> None:
    """No thread of Python's can notice that, or say a last word."""
    table = prompts(24, {9: GRIP})
    config = config_of(tmp_path, table, max_crashes=1, **SHORT)
    run(config, engine_factory=FaultyStandIn(folder=str(tmp_path)))
    rows = check_output(config, table, {9: "crashed"})
    assert "without a word" in rows[9]["error_message"]


def test_fault_07_a_row_without_end_is_found_among_others_that_go_on(tmp_path: Path) -> None:
    table = prompts(24, {9: ENDLESS})
    config = config_of(tmp_path, table, **SHORT)
    factory = FaultyStandIn(folder=str(tmp_path), endless=True, step_seconds=0.05)
    run(config, engine_factory=factory)
    rows = check_output(config, table, {9: "deadline"})
    assert rows[9]["attempts"] <= 3


@pytest.mark.slow
def test_fault_08_memory_that_runs_out_once_costs_nothing_but_time(tmp_path: Path) -> None:
    table = prompts(24)
    config = config_of(tmp_path, table)
    run(config, engine_factory=FaultyStandIn(folder=str(tmp_path), ooms=1))
    rows = check_output(config, table)
    assert max(row["attempts"] for row in rows.values()) == 2
    assert times(tmp_path, "oom") == 1 and times(tmp_path, "build") == 2


def test_fault_08_a_batch_that_is_too_large_is_halved(tmp_path: Path) -> None:
    """Half of the batch fits: every row comes through, and none is blamed."""
    table = prompts(48)
    config = config_of(tmp_path, table)
    run(config, engine_factory=FaultyStandIn(folder=str(tmp_path), memory_rows=4))
    check_output(config, table)
    # Two full batches ran out of memory, then the engine was built for half as many.
    assert times(tmp_path, "build") == 3


def test_fault_08_a_row_that_always_runs_out_of_memory(tmp_path: Path) -> None:
    table = prompts(24, {9: HUGE})
    config = config_of(tmp_path, table, max_crashes=1)
    run(config, engine_factory=FaultyStandIn(folder=str(tmp_path)))
    rows = check_output(config, table, {9: "out_of_memory"})
    assert "can't allocate memory" in rows[9]["error_message"]


def test_fault_09_a_lost_gpu_state_takes_the_process_and_no_row(tmp_path: Path) -> None:
    table = prompts(24)
    config = config_of(tmp_path, table)
    run(config, engine_factory=FaultyStandIn(folder=str(tmp_path), sticky=1))
    rows = check_output(config, table)
    assert times(tmp_path, "build") == 2
    assert max(row["attempts"] for row in rows.values()) == 2
