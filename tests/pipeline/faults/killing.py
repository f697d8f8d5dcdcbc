"""Runs on the session's Ray, in processes of their own, that are killed when they are so far."""

from __future__ import annotations

import pickle
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.config import RunConfig
from pipeline.lease import LeaseTimes
from tests.pipeline.faults.processes import program

_RUN = """
import pickle, sys
config, factory, times = pickle.load(open({path!r}, "rb"))
from pipeline.run import run
run(config, engine_factory=factory, lease_times=times)
"""


def run_of(job: Path) -> str:
    """A program that does what is pickled there: a configuration, a factory, a lease's times."""
    return _RUN.format(path=str(job))


def committed(output: Path) -> int:
    """How many rows there are to be seen."""
    return sum(pq.read_metadata(file).num_rows for file in output.glob("*.parquet"))


@contextmanager
def started(
    folder: Path, config: RunConfig, factory: Any, times: LeaseTimes | None = None, first: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """A run in a process of its own, `first` some other code; it is killed at the end."""
    import ray

    path = folder / "job"
    path.write_bytes(pickle.dumps((config, factory, times)))
    address = str(ray.get_runtime_context().gcs_address)
    with program(first + run_of(path), RAY_ADDRESS=address) as process:
        yield process


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Return when it is so; the process must not end before."""
    while not ready():
        assert process.poll() is None, process.communicate(timeout=60)[0]
        time.sleep(0.02)


def kill_when(folder: Path, config: RunConfig, factory: Any, ready: Callable[[], bool]) -> None:
    """Start a run and kill its driver when it is so far."""
    with started(folder, config, factory) as process:
        wait_until(ready, process)
        process.kill()
        process.wait()
