"""Fault 2: every Decode process is killed once, in the middle of its batch."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

from admg.request import Completion
from pipeline.run import run
from tests.pipeline.faults.faulty import happens, times
from tests.pipeline.faults.oracle import check_output, config_of, prompts
from tests.pipeline.standin import StandIn, StandInEngine


class Doomed(StandInEngine):
    """Each actor's first engine is killed when some of its rows are done and others are not."""

    def __init__(self, factory: DoomedStandIn) -> None:
        super().__init__(factory)
        self.folder = factory.folder

    def step(self) -> list[Completion]:
        done = super().step()
        actor = ray.get_runtime_context().get_actor_id()
        if self._made > 60 and happens(self.folder, f"killed-{actor}", 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return done


@dataclass(frozen=True)
class DoomedStandIn(StandIn):
    folder: str = ""

    def build(self, max_num_seqs: int | None = None) -> StandInEngine:
        happens(self.folder, "build", 99)
        return Doomed(self)


@pytest.mark.usefixtures("ray_cluster")
def test_fault_02_each_actor_killed_once(tmp_path: Path) -> None:
    table = prompts(160)
    config = config_of(tmp_path, table, shards=4, actors=2)
    run(config, engine_factory=DoomedStandIn(folder=str(tmp_path), step_seconds=0.02))
    rows = check_output(config, table)
    assert times(tmp_path, "build") == 4
    assert {row["attempts"] for row in rows.values()} == {1, 2}
