"""Actors on several GPUs, as Ray hands them out: `pytest -m cluster`, this file, 2 minutes.

Ray's GPUs are logical: it counts them and sets `CUDA_VISIBLE_DEVICES` whether there are any or
not, so what is tested is who gets which, and who takes over. Each test has a Ray of its own, in a
process of its own, on one machine or on two.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.device import NoDeviceError
from tests.pipeline.faults.faulty import happens
from tests.pipeline.faults.oracle import check_output, config_of, prompts
from tests.pipeline.faults.processes import program
from tests.pipeline.standin import StandIn, StandInEngine

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

TABLE = prompts(120)
RUN = """
import logging, os, pathlib, ray
from ray.cluster_utils import Cluster
from pipeline.run import run
from tests.pipeline.test_gpu_actors import TABLE, OnGpus
from tests.pipeline.faults.oracle import config_of

folder = pathlib.Path({folder!r})
cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 6, "num_gpus": {first}}})
if {second}:
    cluster.add_node(num_cpus=2, num_gpus={second})
ray.init(cluster.address, logging_level=logging.ERROR, log_to_driver=False)
config = config_of(folder, TABLE, shards=4, actors={actors}, rows_per_block=4)
faults = {{"lost": {lost}, "times": {times}, "load_seconds": {load}}}
factory = OnGpus(folder=str(folder), step_seconds=0.02, **faults)
report = run(config, engine_factory=factory)
print("rows", report.rows_ok, report.rows_error, flush=True)
ray.shutdown()
cluster.shutdown()
os._exit(0)
"""


@dataclass(frozen=True)
class OnGpus(StandIn):
    """Notes what Ray gave to each process.

    The first engine on the GPU `lost` dies as one whose device is lost; so many `times` its
    successors find none there. Any other takes `load_seconds`.
    """

    folder: str = ""
    lost: str = ""
    times: int = 1
    load_seconds: float = 0.0

    def build(self, max_num_seqs: int | None = None) -> StandInEngine:
        import ray

        given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        context = ray.get_runtime_context()
        note = {
            "given": given,
            "actor": context.get_actor_id(),
            "node": context.get_node_id(),
            "process": os.getpid(),
        }
        (Path(self.folder) / f"built-{os.getpid()}").write_text(json.dumps(note))
        first = bool(self.lost) and given == self.lost and happens(self.folder, "chosen", 1)
        if (
            self.lost
            and given == self.lost
            and not first
            and happens(self.folder, "gone", self.times)
        ):
            raise NoDeviceError("torch sees no CUDA device")
        time.sleep(self.load_seconds)
        engine = super().build(max_num_seqs)
        return LosesDevice(self) if first else engine


class LosesDevice(StandInEngine):
    """Decodes a little, then its device is lost."""

    steps = 0

    def step(self) -> list:  # type: ignore[type-arg]
        self.steps += 1
        if self.steps > 5:
            raise RuntimeError("CUDA error: device is lost")
        return super().step()


def run(
    folder: Path,
    first: int,
    second: int,
    actors: int,
    lost: str = "",
    times: int = 1,
    load: float = 0.0,
) -> None:
    values = {"first": first, "second": second, "actors": actors, "times": times, "load": load}
    code = RUN.format(folder=str(folder), lost=repr(lost), **values)
    config = config_of(folder, TABLE, shards=4, actors=actors, rows_per_block=4)
    with program(code) as process:
        words, _ = process.communicate(timeout=240)
    assert process.returncode == 0 and f"rows {len(TABLE)} 0" in words, words
    check_output(config, TABLE)


def built(folder: Path) -> list[dict[str, object]]:
    return [json.loads(file.read_text()) for file in folder.glob("built-*")]


def test_several_gpus_of_a_machine_have_an_actor_each(tmp_path: Path) -> None:
    run(tmp_path, first=3, second=0, actors=3)
    notes = built(tmp_path)
    assert sorted(str(n["given"]) for n in notes) == ["0", "1", "2"]
    assert len({n["actor"] for n in notes}) == 3


def test_machines_with_different_numbers_of_gpus_are_filled(tmp_path: Path) -> None:
    run(tmp_path, first=2, second=1, actors=3)
    notes = built(tmp_path)
    assert len({n["node"] for n in notes}) == 2
    assert sorted(str(n["given"]) for n in notes) == ["0", "0", "1"]


def test_a_lost_device_costs_its_actor_and_no_row(tmp_path: Path) -> None:
    """Its process leaves; the next one finds no device and leaves too; the one after it decodes."""
    run(tmp_path, first=2, second=0, actors=2, lost="1")
    notes = built(tmp_path)
    on_lost = [n for n in notes if n["given"] == "1"]
    assert len({n["process"] for n in on_lost}) >= 2
    assert len({n["actor"] for n in notes}) == 2


def test_a_device_that_stays_lost_leaves_its_rows_to_the_others(tmp_path: Path) -> None:
    """Though Ray goes on counting it, and whoever has it gives up long before others are loaded."""
    run(tmp_path, first=2, second=0, actors=2, lost="1", times=99, load=6.0)
    on_lost = {n["process"] for n in built(tmp_path) if n["given"] == "1"}
    assert len(on_lost) >= 2  # it was tried again there
