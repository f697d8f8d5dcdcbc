"""An actor whose device stays lost gives up; its rows are decoded by others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

from admg.request import Completion
from pipeline.device import NoDeviceError
from pipeline.engine_loop import EngineDied
from pipeline.errors import PipelineError
from pipeline.reasons import is_without_device
from pipeline.run import run
from tests.pipeline.faults.faulty import happens, times
from tests.pipeline.faults.oracle import check_output, config_of, prompts
from tests.pipeline.standin import StandIn, StandInEngine


def test_a_lost_device_is_known_by_its_name() -> None:
    lost = EngineDied("the model could not be loaded: NoDeviceError: this actor was given a GPU")
    wrapped = RuntimeError("a task failed")
    wrapped.__cause__ = lost
    assert is_without_device(lost) and is_without_device(wrapped)
    assert not is_without_device(EngineDied("the model could not be loaded: OSError: no file"))


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
