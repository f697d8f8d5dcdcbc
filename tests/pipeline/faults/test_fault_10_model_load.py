"""Fault 10: the model does not load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

from pipeline.errors import PipelineError
from pipeline.run import run
from tests.pipeline.faults.faulty import FaultyStandIn, happens, times
from tests.pipeline.faults.oracle import check_output, config_of, prompts
from tests.pipeline.standin import StandInEngine

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.mark.parametrize("fault", ["loads", pytest.param("load_deaths", marks=pytest.mark.slow)])
def test_fault_10_a_first_load_that_fails_is_tried_again(tmp_path: Path, fault: str) -> None:
    table = prompts(12)
    config = config_of(tmp_path, table)
    run(config, engine_factory=FaultyStandIn(folder=str(tmp_path), **{fault: 1}))
    check_output(config, table)
    assert times(tmp_path, "build") == 2


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("loads", "the model could not be loaded: OSError: the stand-in's weights are not there"),
        pytest.param(
            "load_deaths",
            "could not be loaded: the process that loads it died 3 times in a row",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_fault_10_a_model_that_never_loads_ends_the_run_with_one_sentence(
    tmp_path: Path, fault: str, words: str
) -> None:
    config = config_of(tmp_path, prompts(12))
    with pytest.raises(PipelineError) as caught:
        run(config, engine_factory=FaultyStandIn(folder=str(tmp_path), **{fault: 99}))
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert times(tmp_path, "build") <= 8


@dataclass(frozen=True)
class OneGoodPlace(FaultyStandIn):
    """Loads for the first actor that tries, and for no other one."""

    def build(self, max_num_seqs: int | None = None) -> StandInEngine:
        actor = ray.get_runtime_context().get_actor_id()
        if happens(self.folder, "claimed", 1):
            happens(self.folder, f"good-{actor}", 1)
        if not times(self.folder, f"good-{actor}"):
            raise OSError("this machine's disk is broken")
        return super().build(max_num_seqs)


def test_fault_10_a_model_that_loads_in_one_place_only_is_enough(tmp_path: Path) -> None:
    table = prompts(40)
    config = config_of(tmp_path, table, actors=2)
    run(config, engine_factory=OneGoodPlace(folder=str(tmp_path), step_seconds=0.2))
    check_output(config, table)
    assert times(tmp_path, "build") == 1
