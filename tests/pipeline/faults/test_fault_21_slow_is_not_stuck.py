"""Fault 21: a block that takes longer than the patience of those who wait for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.counters import Counters, Reading
from pipeline.errors import PipelineError
from pipeline.oversight import Oversight, Shrunk, Stalled
from pipeline.run import run
from tests.pipeline.faults.faulty import HANG, FaultyStandIn
from tests.pipeline.faults.oracle import check_output, config_of, prompts


def made(tokens: int) -> Reading:
    return Reading(1, Counters(completion_tokens=tokens), 1.0)


def test_fault_21_tokens_and_blocks_count_as_movement_and_silence_does_not() -> None:
    oversight = Oversight(30.0, 10.0, {}, dict)
    start = oversight._moved
    for second in range(0, 200, 10):
        oversight.tell(made(second))
        oversight.step(5, start + second)
    for second in range(200, 400, 10):
        oversight.step(second, start + second)
    for second in range(400, 421, 10):
        oversight.step(390, start + second)
    with pytest.raises(Stalled, match="no token was made and no block moved for 30 seconds"):
        oversight.step(390, start + 431)


def test_fault_04_a_cluster_that_grows_again_is_waited_for() -> None:
    have = {"CPU": 4.0}
    oversight = Oversight(1000.0, 30.0, {"CPU": 4.0}, lambda: have)
    start = oversight._moved
    for second, cpus in ((0, 4.0), (10, 2.0), (30, 2.0), (39, 4.0), (60, 2.0)):
        have["CPU"] = cpus
        oversight.step(second, start + second)
    with pytest.raises(Shrunk, match="has 2 of 4 CPUs that the actors need"):
        oversight.step(99, start + 70)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_fault_21_a_slow_block_comes_through_and_a_stuck_one_does_not(tmp_path: Path) -> None:
    table = prompts(4)
    config = config_of(tmp_path, table, rows_per_block=4, stall_seconds=12.0)
    # Twelve tokens, two seconds each.
    run(config, engine_factory=FaultyStandIn(step_seconds=2.0))
    check_output(config, table)

    stuck = prompts(4, {2: HANG})
    other = config_of(tmp_path / "stuck", stuck, rows_per_block=4, stall_seconds=12.0)
    with pytest.raises(PipelineError, match="no token was made and no block moved for 12 seconds"):
        run(other, engine_factory=FaultyStandIn())
    # The same rows, now with a deadline: nobody needs to give up.
    run(
        replace(other, row_deadline_seconds=1.0, stall_seconds=60.0, token_deadline_seconds=0.01),
        engine_factory=FaultyStandIn(),
    )
    check_output(other, stuck, {2: "deadline"})
