"""What one run leaves to the next when it ends early, and what the next makes of it."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import ray

import pipeline.dataflow
from pipeline.attempts import FOLDER, AttemptRecord, Failure
from pipeline.counters import Counters, Reading
from pipeline.dataflow import _board
from pipeline.errors import DEADLINE, PipelineError, StorageError
from pipeline.history import fold
from pipeline.job import Job
from pipeline.keys import row_key
from pipeline.oversight import Stalled
from pipeline.progress import Progress, Tracker, Watch
from pipeline.run import run
from pipeline.storage import Store
from tests.pipeline.faults.oracle import check_output, config_of, prompts
from tests.pipeline.standin import REFUSED, StandIn

pytestmark = pytest.mark.usefixtures("ray_cluster")


def prepared(output: str) -> Store:
    """An output that can be written to."""
    store = Store(output)
    store.prepare()
    store.make_folder(FOLDER)
    return store


@pytest.mark.parametrize(
    ("error", "suspects"),
    [
        (StorageError("writing part-1 failed"), set()),
        (RuntimeError("the shard is gone"), set()),
        (Stalled("no token was made"), {"a"}),
    ],
)
def test_a_run_that_ends_by_itself_blames_nobody_unless_it_stalled(
    error: Exception, suspects: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def execute(job: Job, *others: Any) -> None:
        (safety,) = (o for o in others if isinstance(o, pipeline.dataflow.Safety))
        AttemptRecord(job.store, f"{safety.run}-actor").begin(["a"])
        raise error

    monkeypatch.setattr(pipeline.dataflow, "_execute", execute)
    config = config_of(tmp_path, prompts(4))
    with pytest.raises(PipelineError):
        run(config, engine_factory=StandIn())
    assert set(fold(prepared(config.output), lambda _: False).rows) == suspects


class Told:
    """Whoever wants signs of life."""

    def __init__(self) -> None:
        self.readings: list[Reading] = []

    def __call__(self, reading: Reading) -> None:
        self.readings.append(reading)

    @property
    def rows(self) -> int:
        return max((reading.counters.rows for reading in self.readings), default=0)

    def wait_for(self, rows: int) -> None:
        while self.rows < rows:
            time.sleep(0.01)


@pytest.mark.timeout(60)
def test_a_board_that_dies_and_a_callback_that_raises_cost_no_sign_of_life(
    caplog: pytest.LogCaptureFixture,
) -> None:
    board, told = _board(1), Told()

    def show(_: Progress) -> None:
        raise BrokenPipeError("the terminal is gone")

    tracker = Tracker(show)
    tracker.phase("starting", rows_total=9)
    with Watch(board.board, tracker, 0, told, every=0.02):
        board("actor/1", Counters(rows=1))
        told.wait_for(1)
        ray.kill(board.board, no_restart=False)
        for rows in count(2):
            board("actor/1", Counters(rows=rows))
            if told.rows > 1:
                break
            time.sleep(0.05)
        seconds = [reading.seconds for reading in told.readings if reading.actors]
    assert seconds == sorted(seconds)
    assert caplog.messages.count("progress cannot be shown") == 1


def test_rows_that_are_tried_again_begin_anew(tmp_path: Path) -> None:
    """Also where the run that found them guilty was killed, and left what it knew of them."""
    table = prompts(4, {2: REFUSED})
    config = config_of(tmp_path, table)
    run(config, engine_factory=StandIn())
    key = row_key(2, table["prompt"][2].as_py()).hex()
    record = AttemptRecord(prepared(config.output), "old-actor")
    record.died(Failure(DEADLINE, "late", (key,), alone=True))
    run(replace(config, retry_failed=True), engine_factory=StandIn())
    rows = check_output(config, table, {2: "model_output_invalid"})
    assert rows[2]["attempts"] == 1
