"""The run: the order of the turns, ratios from repeats, and peers that fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from jobs.bench import runner
from jobs.bench.measure import Shape
from jobs.bench.process import WorkerError
from jobs.bench.runner import Plan, Report
from jobs.bench.settings import Cell, Settings
from jobs.bench.show import document, record
from jobs.bench.systems import parse_systems
from jobs.bench.tables import drops_markdown

Asked = list[tuple[str, str]]


class FakeWorker:
    """Answers as a worker does; run number i of a system takes i seconds times its pace."""

    asked: Asked
    fails: dict[str, str]

    def __init__(self, name: str, **_: object) -> None:
        self.name = name
        self.runs = 0

    def __enter__(self) -> FakeWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, at_once: bool = False) -> None:
        if ("close", self.name) not in self.asked:
            self.asked.append(("close", self.name))

    def ask(self, do: str, **_: Any) -> Any:
        self.asked.append((do, self.name))
        if self.fails.get(self.name) == do:
            raise WorkerError(f"{self.name}: no {do}")
        if do == "probe":
            return {"device": "cpu", "peak_gbs": 10.0, "peak_gflops": 100.0}
        if do == "load":
            return {"vllm": "1"} if self.name == "vllm" else {}
        self.runs += do == "run"
        pace = {"plain": 1.0, "transformers": 2.0}.get(self.name, 0.5)
        known = {"sequences": 2, "prompt_tokens": 6, "completion_tokens": 8, "passes": 3}
        dropped = 4 if self.name.startswith("admg") else 0
        return known | {"seconds": pace * self.runs, "rounds": 3, "dropped": dropped}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeWorker]:
    monkeypatch.setattr(runner, "Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "asked", [], raising=False)
    monkeypatch.setattr(FakeWorker, "fails", {}, raising=False)
    return FakeWorker


def plan_for(*systems: str, **fields: Any) -> Plan:
    known: dict[str, Any] = {
        "systems": parse_systems(systems),
        "workloads": ("demo",),
        "batches": (2,),
        "temperatures": (0.0,),
        "prompts": 2,
        "max_tokens": 4,
        "repeats": 2,
        "dtype": "float32",
        "model": "demo",
        "threads": 1,
    }
    settings = Settings(**(known | fields))
    prompts = {name: [[1, 2], [3, 4, 5, 6]] for name in settings.workloads}
    return Plan(settings, "folder/name", "float32", prompts, Shape(10, 4, 8, 2), 40, 80)


def silent(_: object) -> None:
    """Takes what is said."""


def test_systems_take_turns(fake: type[FakeWorker]) -> None:
    report = runner.run(plan_for("admg", "transformers", repeats=3), silent, silent)
    names = ["plain", "admg", "transformers"]
    expected = [("load", n) for n in names] + [("probe", "probe"), ("close", "probe")]
    expected += [("prepare", n) for n in names] + [("run", n) for n in names] * 3
    assert fake.asked[: len(expected)] == expected
    assert sorted(fake.asked[len(expected) :]) == sorted(("close", n) for n in names)
    assert report.failed == {}


def test_ratios_in_the_json_line_follow_from_the_repeats(fake: type[FakeWorker]) -> None:
    report = runner.run(plan_for("transformers"), silent, silent)
    plain, peer = document(report)["cells"]
    assert (plain["ratio_to_plain"], plain["tokens_per_second"]) == (1.0, 6.0)  # of 8 and 4
    assert (peer["ratio_to_plain"], peer["ratio_low"], peer["ratio_high"]) == (0.5, 0.5, 0.5)
    assert peer["tokens_per_second"] == 3.0


def test_a_system_for_batch_1_sits_the_others_out(fake: type[FakeWorker]) -> None:
    report = runner.run(plan_for("transformers-lookup", batches=(1, 2)), silent, silent)
    assert [(cell.batch, name) for cell, name in report.outcomes] == [
        (1, "plain"),
        (1, "transformers-lookup"),
        (2, "plain"),
    ]


@pytest.mark.parametrize("when", ["load", "prepare", "run"])
def test_a_peer_that_fails_is_left_out(fake: type[FakeWorker], when: str) -> None:
    fake.fails["admg"] = when
    report = runner.run(plan_for("admg", "transformers", batches=(1, 2)), silent, silent)
    assert report.failed == {"admg": f"admg: no {when}"}
    assert {name for _, name in report.outcomes} == {"plain", "transformers"}
    assert len(report.outcomes) == 4
    assert all(len(o) == 2 for o in report.outcomes.values())
    after = fake.asked[fake.asked.index(("close", "admg")) + 1 :]
    assert "admg" not in {name for _, name in after}


def test_without_plain_decoding_there_is_nothing_to_say(fake: type[FakeWorker]) -> None:
    fake.fails["plain"] = "run"
    with pytest.raises(WorkerError, match="plain: no run"):
        runner.run(plan_for("admg"), silent, silent)
    assert {("close", "plain"), ("close", "admg")} <= set(fake.asked)


def test_the_report_is_handed_on_after_every_cell(fake: type[FakeWorker]) -> None:
    seen: list[int] = []
    keep: Callable[[Report], None] = lambda r: seen.append(len(record(r, "x")["cells"]))  # noqa: E731
    runner.run(plan_for("admg", temperatures=(0.0, 1.0)), silent, keep)
    assert seen == [2, 4]


def test_the_table_for_documents(fake: type[FakeWorker]) -> None:
    report = runner.run(plan_for("admg:drop=4", "transformers"), silent, silent)
    lines = drops_markdown(report).splitlines()
    assert lines[0].startswith("demo, batch 2, greedy")
    assert "| 4 dropped | 2.00 | - | 2.00 (2.00 to 2.00) | 4.00 (4.00 to 4.00) |" in lines
    assert "| plain | 2.00 | - | 1.00 (1.00 to 1.00) | 2.00 (2.00 to 2.00) |" in lines


def test_cells_name_themselves() -> None:
    assert str(Cell("code", 2, 1.0)) == "code, batch 2, temperature 1"
