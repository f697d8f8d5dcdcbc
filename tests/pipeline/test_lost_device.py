"""An actor whose device stays lost gives up; its rows are decoded by others."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

import pipeline.survival
from admg.request import Completion
from pipeline.counters import Board, Counters
from pipeline.device import NoDeviceError
from pipeline.engine_loop import EngineDied, EngineLoop
from pipeline.errors import PipelineError
from pipeline.quarantine import Rules
from pipeline.reasons import is_without_device
from pipeline.run import run
from pipeline.shared import ToBoard
from pipeline.storage import Store
from pipeline.survival import Safety, load
from tests.pipeline.faults.faulty import happens, times
from tests.pipeline.faults.oracle import check_output, config_of, prompts
from tests.pipeline.standin import StandIn, StandInEngine


def test_a_lost_device_is_known_by_its_name() -> None:
    lost = EngineDied("the model could not be loaded: NoDeviceError: this actor was given a GPU")
    wrapped = RuntimeError("a task failed")
    wrapped.__cause__ = lost
    assert is_without_device(lost) and is_without_device(wrapped)
    assert not is_without_device(EngineDied("the model could not be loaded: OSError: no file"))


@dataclass
class Told:
    """The board, without Ray between."""

    board: Board

    def others_work(self) -> bool:
        return self.board.read().actors > 0

    def others_left(self, without: str | None = None) -> bool:
        if without is not None:
            self.board.lose(without)
        return self.board.others_left()


def test_who_finds_no_gpu_waits_for_those_who_may() -> None:
    board = Board(actors=3)
    safety = Safety(Store("out"), "run", Rules(2, 8, 300.0, 2.0), others=Told(board))
    lost = EngineDied("the model could not be loaded: NoDeviceError: this actor was given a GPU")
    assert safety.others_go_on("a", lost) and safety.others_go_on("a", lost)
    assert not safety.others_go_on("a", EngineDied("the model could not be loaded: OSError: no"))
    assert safety.others_go_on("b", lost)
    assert not safety.others_go_on("c", lost)
    board.report("b/1", Counters())  # it has come back
    assert safety.others_go_on("c", lost)


def test_an_actor_that_waits_loads_once_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    # Its own clock alone: other threads of this process sleep, too.
    clock = SimpleNamespace(sleep=slept.append, monotonic=time.monotonic)
    monkeypatch.setattr(pipeline.survival, "time", clock)
    left = [1, 1, 1]

    def build() -> StandInEngine:
        if left:
            left.pop()
            raise NoDeviceError("torch sees no CUDA device")
        return StandInEngine(StandIn())

    load(lambda: EngineLoop(build), others_go_on=is_without_device).wait_loaded()
    assert slept[:3] == [1.0, 60.0, 60.0]
    left[:] = [1, 1, 1]
    with pytest.raises(EngineDied, match="NoDeviceError"):
        load(lambda: EngineLoop(build))


def test_a_board_that_is_gone_knows_of_nobody() -> None:
    class Gone:
        def __getattr__(self, name: str) -> Any:
            raise ray.exceptions.RayActorError

    board = ToBoard(Gone())
    assert not board.others_work() and not board.others_left() and not board.others_left("a")


class Loses(StandInEngine):
    steps = 0

    def step(self) -> list[Completion]:
        self.steps += 1
        if self.steps > 3:
            raise RuntimeError("CUDA error: device is lost")
        return super().step()


@dataclass(frozen=True)
class LostForOne(StandIn):
    """The first actor's engine dies, and none of its later processes finds a device.

    With `everywhere` no other one does.
    """

    folder: str = ""
    everywhere: bool = False

    def build(self, max_num_seqs: int | None = None) -> StandInEngine:
        actor = ray.get_runtime_context().get_actor_id()
        happens(self.folder, f"actor-{actor}", 1)
        if happens(self.folder, "chosen", 1):
            happens(self.folder, f"lost-{actor}", 1)
            return Loses(self)
        if times(self.folder, f"lost-{actor}") or self.everywhere:
            happens(self.folder, "refused", 99)
            raise NoDeviceError("torch sees no CUDA device")
        return super().build(max_num_seqs)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_goes_on_with_the_others(tmp_path: Path) -> None:
    """`pytest -m slow tests/pipeline/test_lost_device.py`."""
    table = prompts(60)
    config = config_of(tmp_path, table, actors=2)
    run(config, engine_factory=LostForOne(folder=str(tmp_path), step_seconds=0.1))
    check_output(config, table)
    assert times(tmp_path, "refused") >= 2


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_where_no_device_is_left_the_run_ends_with_a_sentence(tmp_path: Path) -> None:
    config = config_of(tmp_path, prompts(60), actors=1)
    factory = LostForOne(folder=str(tmp_path), everywhere=True, step_seconds=0.1)
    with pytest.raises(PipelineError, match="NoDeviceError: torch sees no CUDA device"):
        run(config, engine_factory=factory)
    assert times(tmp_path, "actor") == 1, "started again for nobody"
