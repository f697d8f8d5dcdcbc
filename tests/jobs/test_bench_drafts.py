"""`admg-batch bench drafts`: counts of a tiny model, bars, and what saves as many bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from admg.draft_rules import WindowRule
from jobs.bench.drafts.measure import Bench, Numbers
from jobs.bench.drafts.report import Report, compared_table, drafts_table
from jobs.bench.drafts.variants import SAVED, budget, dropped_beside, fixed
from tests.jobs.test_bench_command import last_line

Call = Callable[..., Result]


@pytest.fixture
def words(tiny: Path, tmp_path: Path) -> list[object]:
    """Three short prompts."""
    rows = [
        {"prompt": text} for text in ("def f(x):" * 30, "import os\n" * 20, "class A:\n    pass\n")
    ]
    (tmp_path / "HumanEval.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    where = ["--model", tiny, "--data", tmp_path, "--workload", "code"]
    return ["bench", "drafts", *where, "--prompts", 3, "--max-tokens", 6, "--quick"]


def test_a_table_and_a_line_of_json(admg_batch: Call, words: list[object], tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    result = admg_batch(*words, "--only", "budgets", "--only", "lookup", "--record", file)
    found = last_line(result)
    assert json.loads(file.read_text()) == found
    rows = {row["name"]: row for row in found["drafts"]}
    # Twelve layers, or eight, are not there to be dropped; beside the budgets as many are as save
    # the same.
    assert next(iter(rows)) == "45% saved, remade, filled" and "lookup" in rows
    assert not any(name.startswith(("8 dropped", "12 dropped")) for name in rows)
    for row in rows.values():
        assert 1 <= row["tokens_per_pass"] <= 5 and row["differing"] == 0
        assert (row["kv_saved"] is None) == (row["name"] == "lookup")
    (pair,) = found["budgets_beside_dropped_layers"]
    assert pair["kv_saved"] == pytest.approx(pair["kv_saved_by_dropped"], abs=0.11)
    assert "Budgets beside dropped layers" in result.output


def test_ctrl_c_prints_what_is_measured(
    admg_batch: Call, words: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = Bench.measure
    calls: list[str] = []

    def interrupted(self: Bench, variant: Any) -> Numbers:
        calls.append(variant.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(self, variant)

    monkeypatch.setattr(Bench, "measure", interrupted)
    result = admg_batch(*words)
    assert result.exit_code == 130
    (row,) = json.loads(result.stdout.splitlines()[-1])["drafts"]
    assert row["name"] == calls[0] == "int8" and row["weights_saved"] > 0.4


def test_all_that_is_asked_for_is_compared() -> None:
    whole = list(fixed(800, quick=False))
    names = [f"{v.group}: {v.name}" for v in whole]
    assert len(set(names)) == len(names)
    bars = {v.name: v.bar for v in whole if v.bar is not None}
    assert bars == {
        "8 dropped": 2.9,
        "8 dropped, filled": 3.5,
        "12 dropped, filled": 3.2,
        "int8": 4.7,
        "int4": 4.0,
    }
    assert [v.saved for v in whole if v.saved is not None] == list(SAVED)
    assert {v.temperature for v in whole} == {0.0, 0.6, 1.0}
    verified = {(v.temperature, v.draft.verification) for v in whole if v.temperature}
    assert len(verified) == 6
    few = {f"{v.group}: {v.name}" for v in fixed(800, quick=True)}
    assert few < set(names)


def test_limits_save_what_they_are_asked_to() -> None:
    """Of 680 keys 68 are read anyhow, so half of the bytes are more than half of the heads."""
    windows = budget(0.45, 680).windows
    assert windows == WindowRule(share=0.5, window=64)
    other = dropped_beside(0.45, 0.413, 30)
    assert other.draft.drop.count == 12 and other.saved == 0.45


def test_bars_are_said_to_be_reached_or_not() -> None:
    numbers = Numbers(3.2, 0.1, 0.6, 100, 0.25, 0.0, 0)
    variants = {v.name: v for v in fixed(800, quick=True)}
    report = Report(
        {}, [(variants["8 dropped"], numbers), (variants["8 dropped, filled"], numbers)]
    )
    cells = list(drafts_table(report.rows).columns[3].cells)
    assert cells[-2:] == ["2.9", "3.5, not reached"]
    assert report.compared == [] and compared_table(report).row_count == 0


def test_mistakes_are_one_sentence(admg_batch: Call, tmp_path: Path) -> None:
    for words, said in (
        (["--workload", "codes"], "did you mean code?"),
        (["--record", tmp_path / "none" / "x.json"], "its folder must exist"),
        (["--prompts", "0"], "--prompts"),
        (["--only", "int3"], "--only is 'int3': it must be a part of a draft's name, or dropped"),
        (["--only", "refreshed", "--quick"], "a part of a draft's name that --quick has"),
    ):
        result = admg_batch("bench", "drafts", *words)
        assert result.exit_code == 2 and said in result.output, result.output
