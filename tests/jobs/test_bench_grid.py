"""`admg-batch bench grid`: what is timed in which order, what is kept, and what is made of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result

from jobs.bench.grid import run
from jobs.bench.grid.report import document, goals, ratios_of, sentences
from jobs.bench.grid.run import Grid, prompts_for, resumed, time_grid
from jobs.bench.measure import Outcome
from jobs.bench.settings import Cell
from tests.jobs.test_bench_command import last_line

Call = Callable[..., Result]
CELLS = [Cell("summarization", 1, 0.0), Cell("code", 4, 0.0), Cell("copying", 16, 1.0)]


def outcome(seconds: float, prefill: float = 1.0) -> Outcome:
    return Outcome(seconds, 4, 400, 44, prefill_seconds=prefill, passes=20, rounds=20)


def grid_of(*ratios: float) -> Grid:
    """A grid whose systems differ in decoding alone: so many times as fast as plain's 8 seconds."""
    timed = {
        cell: {"plain": [outcome(9.0)] * 3, "auto": [outcome(1 + 8 / ratio)] * 3}
        for cell, ratio in zip(CELLS, ratios, strict=False)
    }
    return Grid({"commit": "c", "command": "x", "prompts": {"code, batch 4": "1"}}, "auto", timed)


def test_the_worst_cell_and_the_means_are_named() -> None:
    cells = ratios_of(grid_of(2.0, 1.0, 0.5))
    assert [round(c.decode[0], 6) for c in cells] == [2.0, 1.0, 0.5]
    assert cells[0].whole[0] == pytest.approx(9 / 5)
    said = list(sentences(cells, left=2))
    assert said[0] == (
        "worst cell: copying, batch 16, temperature 1: 0.53 end to end, 0.50 decoding"
    )
    assert said[2] == "mean of 3 cells, decoding: 1.17"
    assert said[3].startswith("2 cells are not timed")


def test_goals_are_of_greedy_decoding_but_for_the_floor() -> None:
    found = {g.name: g.found for g in goals(ratios_of(grid_of(2.0, 1.25, 0.5)))}
    assert found["decoding, summarization, batch 1"] == pytest.approx(2.0)
    assert found["decoding, mean of the workloads, batch 1"] == pytest.approx(2.0)
    assert found["decoding, mean of the workloads, batch 4"] == pytest.approx(1.25)
    assert found["decoding, copying, batch 16"] is None, "it was timed at another temperature"
    assert found["end to end, worst cell"] == pytest.approx(9 / 17)
    line = document(grid_of(2.0))
    assert line["worst_cell"] == str(CELLS[0]) and line["cells"][0]["decode_ratios"] == [2.0] * 3


def test_what_is_recorded_is_what_is_resumed(tmp_path: Path) -> None:
    whole = grid_of(2.0, 1.0)
    again = Grid({"commit": "c", "command": "another", "prompts": {"chat, batch 1": "2"}}, "auto")
    resumed(again, json.loads(json.dumps(whole.to_dict())), tmp_path)
    assert again.timed == whole.timed
    assert again.about["prompts"] == {"code, batch 4": "1", "chat, batch 1": "2"}
    assert list(again.only(CELLS[1:]).timed) == CELLS[1:2], "of the record, what is asked for"
    changed = Grid({"commit": "c", "prompts": {"code, batch 4": "3"}}, "auto")
    with pytest.raises(ValueError, match="the prompts of code, batch 4 differ"):
        resumed(changed, whole.to_dict(), tmp_path)
    for other in (Grid({"commit": "d"}, "auto"), Grid({"commit": "c"}, "ngram")):
        with pytest.raises(ValueError, match="it holds another measurement"):
            resumed(other, whole.to_dict(), tmp_path)
    for broken in ([], {"about": {}}, {**whole.to_dict(), "cells": [{}]}):
        with pytest.raises(ValueError, match="it holds another measurement"):
            resumed(Grid(dict(whole.about), "auto"), broken, tmp_path)


class Clock:
    """Seconds that pass only where something is done."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Workers whose preparation takes 2 seconds, and a run 1."""
    clock = Clock()

    class Worker:
        def __init__(self, name: str) -> None:
            self.name = name

        def ask(self, do: str, **fields: Any) -> dict[str, Any]:
            clock.now += 2 if do == "prepare" else 1
            clock.order.append(f"{do} {self.name}")
            if do == "prepare":
                assert len(fields["cell"]["prompts"]) == prompts_for(fields["cell"]["batch"])
                return {}
            return {"seconds": 1.0, "sequences": 1, "prompt_tokens": 1, "completion_tokens": 2}

    @contextmanager
    def workers(*_: object) -> Iterator[dict[str, Worker]]:
        yield {name: Worker(name) for name in ("plain", "auto")}

    monkeypatch.setattr(run, "_workers", workers)
    return clock


def plan(repeats: int) -> Any:
    settings = SimpleNamespace(cells=CELLS, repeats=repeats, max_tokens=8)
    return SimpleNamespace(settings=settings)


PROMPTS = {(cell.workload, cell.batch): [[1]] * prompts_for(cell.batch) for cell in CELLS}


@pytest.mark.parametrize(
    ("seconds", "repeats", "timed"),
    [(1000, 5, [5, 5, 5]), (36, 5, [4, 4, 4]), (1, 5, [1]), (13, 2, [1, 1, 1]), (12, 1, [1, 1])],
)
def test_cells_share_the_time_that_there_is(
    clock: Clock, seconds: float, repeats: int, timed: list[int]
) -> None:
    grid, kept = Grid({}, "auto"), []

    def keep(grid: Grid) -> None:
        kept.append(len(grid.timed))

    time_grid(plan(repeats), PROMPTS, grid, seconds, lambda _: None, keep, clock)
    assert [len(both["auto"]) for both in grid.timed.values()] == timed
    assert kept == list(range(1, len(timed) + 1)), "every cell is kept at once"
    assert clock.order[:4] == ["prepare plain", "prepare auto", "run plain", "run auto"]
    if timed[0] > 1:
        assert clock.order[4:6] == ["run auto", "run plain"], "back and forth"


def test_cells_that_are_there_are_not_timed_again(clock: Clock) -> None:
    grid = grid_of(2.0, 1.0)
    before = dict(grid.timed)
    time_grid(plan(1), PROMPTS, grid, 100, lambda _: None, lambda _: None, clock)
    assert clock.order.count("run auto") == 1 and len(grid.timed) == 3
    assert {cell: grid.timed[cell] for cell in before} == before


def test_mistakes_are_one_sentence(admg_batch: Call, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    for words, said in (
        (["--system", "plain"], "--system is plain: it must be auto, admg or ngram"),
        (["--system", "vllm"], "it must be auto, admg or ngram"),
        (["--batch", 0, "--quick"], "--batch is 0"),
        (["--quick", "--record", tmp_path / "x.json"], "it is there and no JSON"),
    ):
        result = admg_batch("bench", "grid", *words)
        assert result.exit_code == 2 and said in result.output, result.output


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_grid_of_a_tiny_model(admg_batch: Call, tiny: Path, tmp_path: Path) -> None:
    """Half a minute: `python -m pytest -m slow tests/jobs/test_bench_grid.py`."""
    rows = [{"prompt": f"def f{i}(x):" * 9} for i in range(6)]
    (tmp_path / "HumanEval.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    words = ["bench", "grid", "--model", tiny, "--data", tmp_path, "--workload", "code"]
    words += ["--batch", 1, "--batch", 2, "--temperature", 0, "--max-tokens", 6, "--threads", 1]
    words += ["--repeats", 2, "--dtype", "float32", "--record", tmp_path / "record.json"]
    found = last_line(admg_batch(*words))
    assert [len(c["ratios"]) for c in found["cells"]] == [2, 2]
    assert all(sum(c["rounds"].values()) > 0 for c in found["cells"])
    again = admg_batch(*words)
    assert last_line(again)["cells"] == found["cells"] and "loading" not in again.stderr
    # One batch of them: the same prompts, so it is resumed, and the other cell is not shown.
    words[words.index("--batch") : words.index("--temperature")] = ["--batch", 1]
    one = last_line(admg_batch(*words))
    assert one["cells"] == found["cells"][:1]
    # Other batches leave it cells to time, whatever else the record holds.
    words[words.index("--batch") + 1] = 3
    late = admg_batch(*words, "--minutes", 1e-9)
    assert late.exit_code == 4 and "no cell was timed" in late.output
