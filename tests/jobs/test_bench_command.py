"""`admg-batch bench` from end to end with a tiny model.

Every system that is installed: `pytest -m slow tests/jobs/test_bench_command.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

Call = Callable[..., Result]

CELL = [
    *("system", "workload", "batch", "temperature"),
    *("prefill_tokens_per_second", "decode_tokens_per_second", "tokens_per_second"),
    *("mean_acceptance_length", "ratio_to_plain", "ratio_low", "ratio_high", "peak_resident_bytes"),
]


@pytest.fixture
def common(tiny: Path, tmp_path: Path) -> list[object]:
    """Options of a run that takes seconds: three short prompts of different lengths."""
    prompts = ["def f(x):", "import os\n\n\ndef g():\n", "class A:\n    pass\n"]
    rows = [{"prompt": text} for text in prompts]
    (tmp_path / "HumanEval.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    where = ["--model", tiny, "--data", tmp_path, "--workload", "code"]
    return [*where, "--prompts", 3, "--max-tokens", 5, "--threads", 1, "--dtype", "float32"]


def last_line(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


@pytest.mark.timeout(400)
@pytest.mark.slow
def test_every_system(admg_batch: Call, common: list[object], tmp_path: Path) -> None:
    systems = ["admg:drop=1,tokens=2", "transformers:order=length"]
    systems += ["transformers-continuous", "transformers-lookup:tokens=2"]
    options = [part for name in systems for part in ("--system", name)]
    options += ["--batch", 1, "--batch", 2, "--temperature", 1, "--repeats", 1]
    file = tmp_path / "record.json"
    result = admg_batch("bench", "engine", *common, *options, "--record", file)
    found = last_line(result)

    assert list(found) == ["machine", "versions", "commit", "cells"]
    assert {"cpu", "cores", "threads", "dtype", "peak_gbs", "peak_gflops"} <= set(found["machine"])
    assert {"python", "torch", "transformers", "admg-batch", "model"} <= set(found["versions"])
    at_1 = [(1, name) for name in ("plain", *systems)]
    at_2 = [(2, name) for name in ("plain", *systems[:-1])]
    assert [(c["batch"], c["system"]) for c in found["cells"]] == at_1 + at_2
    plain = {c["batch"]: c for c in found["cells"] if c["system"] == "plain"}
    for cell in found["cells"]:
        ours = cell["system"].startswith(("plain", "admg"))
        assert list(cell) == CELL + ["time"] * ours
        assert (cell["workload"], cell["temperature"]) == ("code", 1.0)
        # With one repeat the ratio is that of the rates themselves.
        ratio = cell["tokens_per_second"] / plain[cell["batch"]]["tokens_per_second"]
        assert cell["ratio_to_plain"] == pytest.approx(ratio, abs=1e-3)
        assert cell["ratio_low"] == cell["ratio_to_plain"] == cell["ratio_high"]
    lengths = {c["system"]: c["mean_acceptance_length"] for c in found["cells"]}
    assert lengths["plain"] == lengths["transformers:order=length"] == 1.0
    assert lengths["admg:drop=1,tokens=2"] >= 1.0
    assert lengths["transformers-continuous"] is None

    recorded = json.loads(file.read_text())
    assert {key: recorded[key] for key in found} == found
    assert recorded["command"].startswith("admg-batch bench engine --model")
    assert recorded["date"] and recorded["failed"] == {}
    assert recorded["workloads"]["code"]["prompts"] == 3
    assert [len(r["seconds"]) for r in recorded["repeats"]] == [1] * len(found["cells"])
    assert "transformers: left-padded" in result.stdout


@pytest.mark.timeout(400)
@pytest.mark.slow
def test_drops(admg_batch: Call, common: list[object], tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    options = ["--drop", 0, "--drop", 3, "--draft-tokens", 2, "--batch", 2, "--repeats", 2]
    result = admg_batch("bench", "drops", *common, *options, "--record", file)
    cells = {c["system"]: c for c in last_line(result)["cells"]}
    assert list(cells) == ["plain", "admg:drop=0,tokens=2", "admg:drop=3,tokens=2", "transformers"]
    # Nothing dropped is the target itself: of 5 tokens one comes with the prefill, then 3 and 1.
    assert cells["admg:drop=0,tokens=2"]["mean_acceptance_length"] == 2.0
    assert 1.0 <= cells["admg:drop=3,tokens=2"]["mean_acceptance_length"] < 2.0

    for entry in json.loads(file.read_text())["repeats"]:
        ratios, cell = entry["ratios_to_plain"], cells[entry["system"]]
        assert len(ratios) == len(entry["seconds"]) == 2
        assert cell["ratio_to_plain"] == pytest.approx(sum(ratios) / 2, abs=2e-4)
        assert (cell["ratio_low"], cell["ratio_high"]) == (min(ratios), max(ratios))
    rows = [line for line in result.stdout.splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows] == [
        *("", "plain", "0 dropped", "3 dropped", "transformers"),
    ]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_controller_explains_itself(
    admg_batch: Call, common: list[object], tmp_path: Path
) -> None:
    file = tmp_path / "record.json"
    options = ["--system", "auto", "--batch", 2, "--repeats", 1, "--explain", "--record", file]
    result = admg_batch("bench", "engine", *common, *options)
    assert result.exit_code == 0, result.stderr
    (rounds,) = [r["rounds"] for r in json.loads(file.read_text())["repeats"] if "rounds" in r]
    assert set(rounds) <= {"plain", "lookup", "self"} and sum(rounds.values()) >= 4
    for choice, number in rounds.items():
        assert f"{choice} {number}" in result.stdout
    assert "target" in result.stdout and "lookup by 5 tokens is right" in result.stdout


def test_what_the_model_cannot_do_is_refused(admg_batch: Call, common: list[object]) -> None:
    result = admg_batch("bench", "drops", *common, "--drop", 4)
    assert result.exit_code == 2
    assert "drop_layers is 4: it must be at most 3, for the model has 5 layers" in result.stderr
    result = admg_batch("bench", "engine", *common, "--max-tokens", 500)
    assert result.exit_code == 2
    assert "workload code has a prompt of 21 tokens: the model has room for 12" in result.stderr


def test_a_batch_that_does_not_fit_is_refused(
    admg_batch: Call, common: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.bench.runner.available_bytes", lambda: 2**30)
    result = admg_batch("bench", "engine", *common)
    assert result.exit_code == 2
    assert "--batch is 16: " in result.stderr and "1.0 GiB are free" in result.stderr
