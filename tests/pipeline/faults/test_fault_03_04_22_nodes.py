"""Faults 3, 4 and 22: machines that are lost, and machines that are just large enough.

Each test has a Ray of its own, in a process of its own: `pytest -m cluster`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.faults.oracle import check_output, config_of, prompts
from tests.pipeline.faults.processes import program

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

TABLE = prompts(200)
LOSE = """
import logging, os, pathlib, subprocess, sys, threading, time, ray
from ray.cluster_utils import Cluster
from pipeline.run import run
from tests.pipeline.faults.test_fault_03_04_22_nodes import TABLE
from tests.pipeline.faults.oracle import config_of
from tests.pipeline.standin import StandIn

folder = pathlib.Path({folder!r})
cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": {head}}})
node = cluster.add_node(num_cpus={other})
ray.init(cluster.address, logging_level=logging.ERROR, log_to_driver=False)

def work():
    config = config_of(folder, TABLE, shards=4, actors=2, rows_per_block={block},
                       stall_seconds={stall})
    report = run(config, engine_factory=StandIn(step_seconds=0.2))
    print("rows", report.rows_ok, report.rows_error, flush=True)

worker = threading.Thread(target=work, daemon=True)
worker.start()
while len(list((folder / "out").glob("*.parquet"))) < {files} and worker.is_alive():
    time.sleep(0.05)
assert worker.is_alive()
if {drained}:
    words = [sys.executable, "-m", "ray.scripts.scripts", "drain-node"]
    words += ["--address", cluster.address, "--node-id", node.node_id]
    words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    words += ["--reason-message", "spot", "--deadline-remaining-seconds", "14"]
    subprocess.run(words, check=True, capture_output=True)
    assert node.node_id in ray._private.state.state.get_draining_nodes()
    print("told of it", flush=True)
    time.sleep(12)
assert worker.is_alive()
cluster.remove_node(node, allow_graceful=False)
print("lost a machine", flush=True)
if {replaced}:
    cluster.add_node(num_cpus={other})
worker.join()
ray.shutdown()
cluster.shutdown()
os._exit(0)  # what Cluster leaves for the interpreter's end trips over the node that is gone
"""


@pytest.mark.parametrize(
    ("head", "other", "replaced", "drained", "stall", "block"),
    [
        pytest.param(3, 2, True, False, 600.0, 8, id="fault_03_a_machine_is_lost_with_blocks"),
        pytest.param(3, 2, True, False, 600.0, 24, id="fault_03_and_with_parts_of_blocks"),
        pytest.param(4, 2, False, False, 600.0, 8, id="fault_04_not_replaced_and_room_elsewhere"),
        pytest.param(2, 2, False, False, 15.0, 8, id="fault_04_not_replaced_and_too_little_left"),
        pytest.param(4, 2, False, True, 600.0, 8, id="fault_04_announced_as_preemptions_are"),
        pytest.param(4, 2, False, True, 600.0, 24, id="fault_04_announced_amid_gathered_blocks"),
    ],
)
def test_a_lost_machine(
    tmp_path: Path,
    head: int,
    other: int,
    replaced: bool,
    drained: bool,
    stall: float,
    block: int,
) -> None:
    """Blocks of 8 rows are whole calls; those of 24 are gathered from calls on either machine."""
    config = config_of(tmp_path, TABLE, shards=4)
    code = LOSE.format(
        folder=str(tmp_path),
        head=head,
        other=other,
        replaced=replaced,
        drained=drained,
        stall=stall,
        block=block,
        files=48 // block,
    )
    with program(code) as process:
        words, _ = process.communicate(timeout=240)
    assert process.returncode == 0, words
    assert "lost a machine" in words and "rows 200 0" in words
    assert ("told of it" in words) == drained
    rows = check_output(config, TABLE)
    if drained:
        # From the notice on its actor gets no further block; those that it has it ends in time.
        assert {row["attempts"] for row in rows.values()} == {1}


EXACT = """
import logging, pathlib, ray
from pipeline.errors import PipelineError
from pipeline.run import run
from tests.pipeline.faults.test_fault_03_04_22_nodes import TABLE
from tests.pipeline.faults.oracle import config_of
from tests.pipeline.standin import StandIn

folder = pathlib.Path({folder!r})
ray.init(address="local", num_cpus={cpus}, include_dashboard=False, log_to_driver=False,
         logging_level=logging.ERROR)
config = config_of(folder, TABLE, shards=4, actors={actors}, rows_per_block=8)
(folder / "fuse").touch()
try:
    run(config, engine_factory=StandIn(fuse=str(folder / "fuse"), die_after=60))
except PipelineError as error:
    print("stopped:", error, flush=True)
report = run(config, engine_factory=StandIn())
print("reused", report.rows_reused, "rows", report.rows_ok, flush=True)
"""


@pytest.mark.parametrize(("cpus", "actors"), [(1, 1), (2, 2), (4, 2)])
def test_fault_22_a_machine_that_is_just_large_enough(
    tmp_path: Path, cpus: int, actors: int
) -> None:
    """The first run ends early; what goes on finds the same CPUs, and no deadlock."""
    config = config_of(tmp_path, TABLE, shards=4)
    with program(EXACT.format(folder=str(tmp_path), cpus=cpus, actors=actors)) as process:
        words, _ = process.communicate(timeout=240)
    assert process.returncode == 0, words
    assert "stopped: the run stopped: the model could not be loaded" in words
    assert "rows 200" in words and "reused 0 " not in words
    check_output(config, TABLE)
