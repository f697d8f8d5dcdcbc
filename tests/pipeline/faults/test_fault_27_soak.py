"""Fault 27 and the soak: kills at random, again and again; the output is the undisturbed one's."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.faults.oracle import check_output, prompts
from tests.pipeline.faults.processes import ROOT
from tests.pipeline.faults.soak import config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def soak(folder: Path, rows: int, *more: str) -> dict[str, list[list[int]]]:
    words = [sys.executable, "-m", "tests.pipeline.faults.soak", str(folder), "--rows", str(rows)]
    done = subprocess.run([*words, *more], cwd=ROOT, capture_output=True, text=True, check=False)
    log = folder / "driver.log"
    assert done.returncode == 0, done.stdout + done.stderr + log.read_text()[-3000:]
    check_output(config(folder, rows), prompts(rows))
    record: dict[str, list[list[int]]] = json.loads((folder / "record.json").read_text())
    return record


def test_soak_fifty_random_kills_of_driver_and_actors(tmp_path: Path) -> None:
    record = soak(tmp_path, 4000, "--kills", "50", "--every", "4", "--step", "0.08")
    assert record["drivers"] + record["actors"] == 50  # type: ignore[operator]


def test_fault_27_a_hundred_thousand_rows_with_kills_and_flat_memory(tmp_path: Path) -> None:
    record = soak(
        tmp_path, 100_000, "--kills", "1000", "--every", "10", "--step", "0.002", "--drivers", "0"
    )
    # About every ten seconds, where an actor was there to be killed.
    assert record["actors"] >= record["seconds"] / 20  # type: ignore[operator]
    mib = [m for _, m in record["memory"]]
    assert len(mib) > 60
    # The first third holds starting, and the blocks in flight filling up.
    third = len(mib) // 3
    assert statistics.median(mib[-third:]) < 1.05 * statistics.median(mib[third : 2 * third])
