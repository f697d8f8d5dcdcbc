"""Calibration of the demo model, and runs by what it gives.

.venv/bin/python -m pytest -m slow tests/jobs/test_calibrate_real.py   (about 3 minutes)
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import Result

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
Call = Callable[..., Result]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from click.testing import CliRunner

    from jobs.cli import main

    folder = tmp_path_factory.mktemp("demo") / "prompts"
    args = ["prepare", "demo", "--output", str(folder), "--limit", "6"]
    assert CliRunner().invoke(main, args).exit_code == 0
    return folder


def texts(call: Call, prompts: Path, output: Path, demo: Path, *more: object) -> dict[str, str]:
    args = ("--input", prompts, "--output", output, "--model", demo, "--chat")
    done = call("run", *args, "--dtype", "float32", "--max-tokens", "12", *more)
    assert done.exit_code == 0, done.output
    table = pq.read_table(output)
    drafted = sum(table["num_draft_tokens"].to_pylist())
    assert (drafted == 0) == ("none" in more)
    return dict(zip(table["id"].to_pylist(), table["completion"].to_pylist(), strict=True))


@pytest.mark.parametrize(
    ("kind", "more"), [("admg", ("--drop-count", "4")), ("draft-verify", ("--trials", "24"))]
)
def test_runs_by_a_calibrated_plan_give_plain_texts(
    admg_batch: Call, prompts: Path, demo_model_path: Path, tmp_path: Path, kind: str, more: tuple
) -> None:
    plan = tmp_path / "plan.toml"
    args = ("--input", prompts, "--model", demo_model_path, "--chat", "--output", plan)
    done = admg_batch("calibrate", kind, *args, "--dtype", "float32", "--max-tokens", "12", *more)
    assert done.exit_code == 0, done.output
    made = tomllib.loads(plan.read_text())
    assert made["model"]["layers"] == 30 and made["made"]["prompts"] == 6
    assert made["made"]["tokens_per_pass"] > 1.2
    plain = texts(admg_batch, prompts, tmp_path / "plain", demo_model_path, "--drafter", "none")
    planned = texts(admg_batch, prompts, tmp_path / "planned", demo_model_path, "--plan", plan)
    assert planned == plain
