"""Fault 6: rows that end the process that decodes them, every time."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.run import run
from tests.pipeline.faults.faulty import EXIT, KILL, RAISE, SEGV, FaultyStandIn, times
from tests.pipeline.faults.oracle import check_output, config_of, prompts

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_fault_06_a_row_that_kills_is_quarantined_and_its_neighbours_finish(tmp_path: Path) -> None:
    table = prompts(40, {11: KILL})
    config = config_of(tmp_path, table)
    report = run(config, engine_factory=FaultyStandIn(folder=str(tmp_path)))
    assert (report.rows_ok, report.rows_error, report.errors_by_code) == (39, 1, {"crashed": 1})
    rows = check_output(config, table, {11: "crashed"})
    assert "without a word" in rows[11]["error_message"]
    assert rows[11]["attempts"] >= 4 and rows[11]["completion"] is None
    # Those that were in the engine with it were tried as often as it died, and once more.
    neighbours = [r["attempts"] for i, r in rows.items() if i != 11]
    assert max(neighbours) in range(3, rows[11]["attempts"] + 1)
    assert not list((tmp_path / "out" / "_admg" / "attempts").iterdir())


def test_fault_06_each_way_to_die_in_one_job(tmp_path: Path) -> None:
    table = prompts(32, {3: EXIT, 12: SEGV, 30: RAISE})
    config = config_of(tmp_path, table, max_crashes=1)
    run(config, engine_factory=FaultyStandIn(folder=str(tmp_path)))
    rows = check_output(config, table, dict.fromkeys((3, 12, 30), "crashed"))
    assert "the stand-in's matmul broke" in rows[30]["error_message"]
    assert times(tmp_path, "build") <= 13
