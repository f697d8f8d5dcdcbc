"""Fault 28: machines whose clocks disagree, or are set while a run is at work.

Nothing here compares clocks, so a wrong one can neither let two runs in nor keep all of them out.
What one lease does with them is in `test_lease`.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from itertools import cycle
from pathlib import Path

import pytest

from pipeline.errors import Locked
from pipeline.lease import LeaseTimes
from pipeline.manifest import read_manifest
from pipeline.names import FileName
from pipeline.run import run
from tests.pipeline.faults.clocks import wrong_clock
from tests.pipeline.faults.killing import committed, started, wait_until
from tests.pipeline.faults.oracle import check_output, config_of, prompts
from tests.pipeline.standin import StandIn

# Silence never counts here: only a clock could make somebody take the output over.
TIMES = LeaseTimes(every=0.1, stale_after=3600)
AHEAD = """
from tests.pipeline.faults.clocks import wrong_clock
clock = wrong_clock(6, jump=-1)
clock.__enter__()
"""


def fences(files: list[Path]) -> set[int]:
    """The numbers of the runs that wrote these files."""
    names = [FileName.parse(file.name) for file in files]
    return {name.fence for name in names if name is not None}


@pytest.mark.usefixtures("ray_cluster")
def test_fault_28_runs_whose_clocks_disagree(tmp_path: Path) -> None:
    """The second is refused whatever its clock says; later it goes on from files of the future."""
    table = prompts(64)
    config = config_of(tmp_path, table, rows_per_block=4, max_rows_per_file=0)
    output = tmp_path / "out"
    with started(tmp_path, config, StandIn(step_seconds=0.1), TIMES, AHEAD) as first:
        wait_until(lambda: committed(output) >= 8, first)
        for hours, jump in ((0, 0), (-30, 1), (1000, -1)):
            with wrong_clock(hours, jump), pytest.raises(Locked) as caught:
                run(config, engine_factory=StandIn(refuses_to_load=True), lease_times=TIMES)
        # Its clock was ahead when it began, by five hours or by six.
        later = (datetime.now(UTC) + timedelta(hours=h) for h in (4, 5, 6))
        days = "|".join(f"{time:%Y-%m-%dT%H}" for time in later)
        caught.match(rf"locked by .* \(process {first.pid}, since ({days})")
        first.kill()
        first.wait()
    files = list(output.glob("*.parquet"))
    assert fences(files) == {1}
    for file, when in zip(files, cycle((0, 2**32))):
        os.utime(file, (when, when))

    with wrong_clock(-30, jump=1):
        report = run(config, engine_factory=StandIn(), lease_times=TIMES)
    assert 8 <= report.rows_reused < 64
    check_output(config, table)
    assert fences(list(output.glob("*.parquet"))) == {1, 2}
    # The clock that this was told by was a day behind the first run's.
    ended = datetime.fromisoformat(read_manifest(config.output)["run"]["ended"])
    assert ended < datetime.now(UTC) - timedelta(hours=20)
