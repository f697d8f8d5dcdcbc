"""Runs whose process is killed or interrupted: what is committed stays, the rest is done once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from admg.config import SamplingParams
from pipeline.config import RunConfig
from pipeline.run import run
from tests.pipeline.conftest import write_shards
from tests.pipeline.standin import StandIn, expected

ROWS = 120
PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background
from pipeline.run import run
from tests.pipeline.standin import StandIn
from tests.pipeline.test_interruption import config_of
import pathlib
run(config_of(pathlib.Path({folder!r})), engine_factory=StandIn(step_seconds=0.2))
"""


def config_of(folder: Path) -> RunConfig:
    return RunConfig(
        input=(str(folder / "in"),),
        output=str(folder / "out"),
        model="stand-in",
        sampling=SamplingParams(max_tokens=20),
        rows_per_block=4,
    )


def committed(folder: Path) -> list[Path]:
    return sorted((folder / "out").glob("*.parquet"))


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A run in a process of its own, some blocks of which are committed."""
    ids = list(range(ROWS))
    write_shards(tmp_path / "in", [pa.table({"id": ids, "prompt": [f"prompt {i}" for i in ids]})])
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(folder=str(tmp_path))],
        cwd=Path(__file__).parents[2],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(committed(tmp_path)) < 3 and process.poll() is None:
        time.sleep(0.05)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# In make test fault 1 kills drivers, and Ctrl-C goes to the whole command with the real model.
@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_run_that_is_stopped_goes_on_where_it_was(
    tmp_path: Path, running: subprocess.Popen[str], how: signal.Signals, ray_cluster: None
) -> None:
    os.killpg(running.pid, how)
    _, words = running.communicate(timeout=60)
    assert running.returncode == -how
    if how == signal.SIGINT:
        assert words.rstrip().endswith("KeyboardInterrupt")
    before = sum(pq.read_metadata(path).num_rows for path in committed(tmp_path))
    assert 12 <= before < ROWS
    assert not (tmp_path / "out" / "_SUCCESS").exists()

    factory = StandIn(log=str(tmp_path / "log"))
    report = run(config_of(tmp_path), engine_factory=factory)
    # Workers of the killed process may have committed a little more before they noticed.
    assert before <= report.rows_reused < ROWS
    assert len(factory.submitted()) == ROWS - report.rows_reused
    table = pq.read_table(tmp_path / "out")
    assert sorted(table["id"].to_pylist()) == list(range(ROWS))
    texts = dict(zip(table["id"].to_pylist(), table["completion"].to_pylist(), strict=True))
    assert texts == {i: expected(f"prompt {i}", 20) for i in range(ROWS)}
    assert not list((tmp_path / "out" / "_admg" / "tmp").iterdir())
