"""Fault 6: rows that end the process that decodes them, every time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pipeline.run import run
from tests.pipeline.faults.faulty import EXIT, KILL, RAISE, SEGV, FaultyStandIn, times
from tests.pipeline.faults.oracle import check_output, config_of, prompts
from tests.pipeline.faults.processes import program
from tests.pipeline.s3 import BUCKET, S3Server

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


@pytest.mark.slow
def test_fault_06_each_way_to_die_in_one_job(tmp_path: Path) -> None:
    table = prompts(32, {3: EXIT, 12: SEGV, 30: RAISE})
    config = config_of(tmp_path, table, max_crashes=1)
    run(config, engine_factory=FaultyStandIn(folder=str(tmp_path)))
    rows = check_output(config, table, dict.fromkeys((3, 12, 30), "crashed"))
    assert "the stand-in's matmul broke" in rows[30]["error_message"]
    # A row dies once with all, once in small company, and then alone 1 + log2(others' deaths + 1)
    # times, which is 4 for the at most twelve of the two others.
    assert times(tmp_path, "build") <= 1 + 3 * (2 + 4)


FIRST = """
import pathlib
from pipeline.run import run
from tests.pipeline.faults.faulty import FaultyStandIn
from tests.pipeline.faults.oracle import config_of
folder = pathlib.Path({folder!r})
config = config_of(folder, None, output={output!r})
run(config, engine_factory=FaultyStandIn(folder=str(folder / "first")))
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["disk", "s3"])
def test_fault_06_what_is_known_survives_the_driver_and_its_cluster(
    tmp_path: Path, where: str, s3: S3Server
) -> None:
    table = prompts(40, {11: KILL})
    output = str(tmp_path / "out") if where == "disk" else f"s3://{BUCKET}/{tmp_path.name}/out"
    config = config_of(tmp_path, table, output=output)
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with program(FIRST.format(folder=str(tmp_path), output=output)) as process:
        while times(first, "build") < 3 and process.poll() is None:
            time.sleep(0.05)
        assert process.poll() is None
    run(config, engine_factory=FaultyStandIn(folder=str(second)))
    rows = check_output(config, table, {11: "crashed"})
    # Two deaths were seen by the first run; the second had at least that many less to see.
    assert rows[11]["attempts"] >= 2 + times(second, "build") - 1


@pytest.mark.slow
def test_fault_06_on_an_object_store(tmp_path: Path, s3: S3Server) -> None:
    table = prompts(40, {11: KILL})
    output = f"s3://{BUCKET}/{tmp_path.name}/out"
    config = config_of(tmp_path, table, output=output)
    report = run(config, engine_factory=FaultyStandIn(folder=str(tmp_path)))
    assert report.errors_by_code == {"crashed": 1}
    rows = check_output(config, table, {11: "crashed"})
    assert rows[11]["attempts"] >= 4
    left = s3.objects(f"{tmp_path.name}/out")
    assert "_SUCCESS" in left and not [name for name in left if "/attempts/" in name]
