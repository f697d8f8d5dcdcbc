"""Fault 28, continued: ticks of the clock that were missed, that die, and that come at once."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from jobs.nightly.dates import due
from pipeline.errors import Locked
from tests.jobs.test_nightly import Nights
from tests.pipeline.faults.killing import committed, wait_until
from tests.pipeline.faults.processes import program
from tests.pipeline.standin import StandIn

DAYS = list(due(date(2026, 11, 22), 2))
BLOCKS = {"engine": {"rows_per_block": 4}}
_TICK = """
from pathlib import Path
from tests.pipeline.faults.test_fault_28_ticks import tick
tick(Path({folder!r}), {log!r}, {step})
"""


def tick(folder: Path, log: str, step_seconds: float) -> None:
    """What a tick of the nightly job does: the last three days, oldest first."""
    nights = Nights(folder, **BLOCKS)
    nights.factory = replace(nights.factory, step_seconds=step_seconds, log=log)
    for day in DAYS:
        try:
            print(day, nights.tick(day).state)
        except Locked as locked:
            print(day, locked)


@pytest.mark.usefixtures("ray_cluster")
def test_fault_28_missed_ticks_are_made_up_for_once_a_date(tmp_path: Path) -> None:
    """Nobody came for two days; the one that comes dies in the second; then two come at once."""
    import ray

    address = {"RAY_ADDRESS": str(ray.get_runtime_context().gcs_address)}
    nights = Nights(tmp_path, **BLOCKS)
    texts = {day: {f"{day}-{i}": f"Document {i} of {day}." for i in range(24)} for day in DAYS}
    for day in DAYS:
        nights.shard("one", dict(texts[day]), day)
    second = tmp_path / "out" / f"date={DAYS[1]}"
    log, later = str(tmp_path / "log"), str(tmp_path / "later")
    with program(_TICK.format(folder=str(tmp_path), log=log, step=0.1), **address) as first:
        wait_until(lambda: committed(second) >= 4, first)
        first.kill()
        first.wait()
    there = nights.rows(DAYS[0]) | nights.rows(DAYS[1])
    assert len(there) >= 24 + 4 and not (tmp_path / "out" / f"date={DAYS[2]}").exists()

    with ExitStack() as both:
        code = _TICK.format(folder=str(tmp_path), log=later, step=0.05)
        ticks = [both.enter_context(program(code, **address)) for _ in range(2)]
        said = [process.communicate(timeout=120)[0] for process in ticks]
        assert [process.returncode for process in ticks] == [0, 0], said
    for day in DAYS:
        rows = nights.rows(day)
        assert rows.keys() == texts[day].keys()
        for name, row in rows.items():
            assert row["completion"] == nights.summary(texts[day][name])
    # Each of the two found a date at work or done: nothing was decoded by both, or again.
    decoded = Counter(StandIn(log=later).submitted())
    assert set(decoded.values()) == {1}
    assert not set(decoded) & {row["row_key"].hex() for row in there.values()}
    assert 24 <= len(decoded) <= 3 * 24 - len(there)
