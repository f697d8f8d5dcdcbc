"""`bench gpu`: its cells, what is made of their times, and what an interruption leaves."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from jobs.bench.gpu import harness, measuring, text
from jobs.bench.gpu.cells import FULL, Cell, grid_of
from jobs.bench.gpu.clock import Clock, LeftOutError, ask
from jobs.bench.gpu.costs import Costs, draft_of, spread
from jobs.bench.gpu.goals import goals
from jobs.bench.gpu.harness import Found, Settings
from jobs.bench.gpu.page import page
from jobs.bench.gpu.record import document
from jobs.bench.gpu.sheets import data_sheet, sheets
from jobs.bench.gpu.worth import Timed, by_cost, seconds_of, speedup
from jobs.bench.process import WorkerError
from jobs.devices import GPUS

STEP = 0.02


class FakeWorker:
    """Answers as the costs' worker does: a pass costs by its tokens and what it leaves out."""

    name = "costs"
    started: int
    answers: dict[str, Any]

    def __init__(self, name: str, **_: object) -> None:
        type(self).started += 1
        self.cell = Cell("decode", 1, 1)

    def __enter__(self) -> FakeWorker:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def close(self, at_once: bool = False) -> None:
        pass

    def ask(self, do: str, **fields: Any) -> Any:
        if do == "probe":
            return {"device": "NVIDIA H200", "peak_gbs": 4300.0, "peak_gflops": 8e5}
        if do == "load":
            if fields["weights"] in self.answers:
                raise WorkerError(f"costs: {self.answers[fields['weights']]}")
            return {"seconds": 1.0}
        if do == "prepare":
            self.cell = Cell(**fields["cell"])
            if (found := self.answers.get(str(self.cell))) is None:
                return {"batch": self.cell.batch or 60}
            if isinstance(found, str):
                return {"skipped": found}
            raise found
        drafted = STEP * (1 - self.cell.dropped / 40) * (1 - self.cell.share / 2)
        seconds = STEP * (1 + 0.01 * self.cell.drafts)
        if self.cell.part == "draft":
            seconds += self.cell.drafts * drafted
        if self.cell.part == "eager":
            seconds = 2 * STEP
        return {
            "batch": self.cell.batch or 60,
            "context": self.cell.context,
            "round_seconds": seconds,
            "round_low": seconds,
            "round_high": seconds,
        }


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeWorker]:
    for module in (measuring, harness):
        monkeypatch.setattr(module, "Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "answers", {}, raising=False)
    monkeypatch.setattr(FakeWorker, "started", 0, raising=False)
    monkeypatch.setattr(harness, "driver", lambda: {"gpu": "NVIDIA H200", "driver": "580.1"})
    return FakeWorker


def run(**fields: Any) -> Found:
    return harness.run(Settings(parts=("dummy",), **fields), lambda _: None)


def test_the_grid_is_what_was_asked_for() -> None:
    stages = dict(grid_of("llama-2-13b", False).stages())
    cells = [cell for found in stages.values() for cell in found]
    assert len(set(cells)) == len(cells)
    plain = {(c.batch, c.context) for c in cells if c.part == "decode"}
    assert plain == {(b, n) for b in (1, 8, 32, FULL) for n in (512, 1024, 2048, 4096)}
    drafts = [c for c in cells if c.part == "draft"]
    assert {c.dropped for c in drafts if not c.share} == {0, 8, 16, 20, 24, 30}
    shares = {(c.share, c.weights) for c in drafts if not c.dropped and c.batch == 32}
    assert shares == {(s, w) for s in (0, 0.5, 0.75, 0.9) for w in ("full", "int4", "fp8")}


def test_all_of_it_becomes_tables_a_page_and_a_line(fake: type[FakeWorker]) -> None:
    found = run()
    content = document(found)
    assert json.loads(json.dumps(content))["machine"]["driver"] == "580.1"
    assert not content["left_out"] and len(content["costs"]) == len(found.costs.timed)
    assert data_sheet(found) is GPUS["H200"]
    one = next(c for c in content["costs"] if (c["batch"], c["context"]) == (32, 2048))
    # 25.7 GB of weights and 32 x 2048 x 0.82 MB at 4.8 TB/s.
    assert one["roofline_share"] == pytest.approx((25.7 + 53.7) / 4800 / STEP, rel=0.01)
    best = next(c for c in content["by_cost"] if c["dropped"] == 24 and c["batch"] == 32)
    assert best["how"] == "by cost, acceptance 0.9 assumed"
    assert best["draft_cost"] == pytest.approx(1 - 24 / 40)
    states = {g.what: g.state for g in goals(found)}
    assert states["24 layers dropped, batch 32, by cost"] == "met"
    assert states["whole rounds on the device, batch 1, pass by pass = 1"] == "met"
    assert states["auto on the widened model, decoding, worst repeat"] == "not measured"
    shown = page(found)
    assert "<script" not in shown and shown.count("<svg") == 2
    for sheet in sheets(found):
        assert sheet.title in shown and all(len(r) == len(sheet.columns) for r in sheet.rows)


def test_real_text_is_beside_plain_in_all_tables(
    fake: type[FakeWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {"system": "auto", "batch": 1, "decode_ratio": 1.4, "decode_ratio_low": 1.3}
    entry |= {"decode_ratio_high": 1.5, "ratio_to_plain": 1.2, "ratio_low": 1.1, "ratio_high": 1.3}
    speeds = ("prefill_tokens_per_second", "decode_tokens_per_second", "tokens_per_second")
    entry |= dict.fromkeys((*speeds, "mean_acceptance_length"), 2.0)
    found = run()
    for module in ("sheets", "goals", "page", "record"):
        monkeypatch.setattr(f"jobs.bench.gpu.{module}.figures", lambda _: [entry])
    sheet = next(s for s in sheets(found) if s.title.startswith("Real text"))
    named = dict(zip(sheet.columns, sheet.rows[0], strict=True))
    assert (named["ratio"], named["of decode"], named["low-high"]) == ("1.20", "1.40", "1.30-1.50")
    states = {g.what: g.found for g in goals(found)}
    assert states["auto on the widened model, decoding, worst repeat"] == 1.3
    assert page(found).count("<svg") == 3 and document(found)["text"]["cells"] == [entry]


def test_what_fails_or_does_not_fit_is_named_and_the_rest_goes_on(
    fake: type[FakeWorker],
) -> None:
    big, broken = "decode, full memory, context 4096", "draft, batch 32, context 2048, "
    broken += "full weights, 16 layers dropped"
    fake.answers = {
        big: "105.0 GB of keys and values do not fit into the free memory",
        broken: WorkerError("costs: RuntimeError: CUDA error: an illegal memory access"),
        "fp8": "ValueError: this engine has no fp8 draft weights",
    }
    found = run()
    left_out = document(found)["left_out"]
    assert left_out[big].endswith("the free memory") and "illegal memory access" in left_out[broken]
    assert sum("no fp8" in why for why in left_out.values()) == 15
    everything = [c for _, cells in grid_of("llama-2-13b", False).stages() for c in cells]
    assert len(found.costs.timed) + len(left_out) == len(everything)
    # The probe's, one for each kind of weights, and one in the place of the broken one.
    assert fake.started == 5


def test_an_interruption_keeps_what_is_measured(
    fake: type[FakeWorker], admg_batch: Callable[..., Result], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(harness, "check_device", lambda _: None)
    fake.answers = {"verify, batch 32, context 2048, 3 tokens": KeyboardInterrupt()}
    record, html = tmp_path / "record.json", tmp_path / "page.html"
    done = admg_batch("bench", "gpu", "--weights", "dummy", "--record", record, "--html", html)
    assert done.exit_code == 130, done.output
    content = json.loads(record.read_text())
    assert content["interrupted"] and len(content["costs"]) == 5
    assert content["command"].startswith("admg-batch bench gpu --weights dummy")
    lines = done.stdout.splitlines()
    assert json.loads(lines[-1])["costs"] == content["costs"] and "roofline" in html.read_text()


def test_time_that_is_over_leaves_out_the_rest_by_name(fake: type[FakeWorker]) -> None:
    found = run(minutes=1e-9)
    assert not found.costs.timed and found.empty
    assert set(found.costs.left_out.values()) == {"no time was left"}


def test_whatever_waits_when_the_time_is_over_is_ended(
    fake: type[FakeWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "_GRACE_SECONDS", 0.0)
    monkeypatch.setattr(harness, "_text", lambda *_: time.sleep(30))
    found = harness.run(Settings(parts=("widened",), minutes=0.2 / 60), lambda _: None)
    assert found.seconds < 20 and not found.interrupted
    assert found.text.left_out["the rest"] == "it took longer than there was time"


def test_a_worker_that_hangs_is_ended() -> None:
    class Hanging:
        name = "costs"
        closed = False

        def ask(self, do: str, **_: Any) -> Any:
            while not self.closed:
                time.sleep(0.01)
            raise WorkerError("costs: its process ended (-9)")

        def close(self, at_once: bool = False) -> None:
            self.closed = at_once

    with pytest.raises(LeftOutError, match="it took longer than 0 s"):
        ask(Hanging(), 0.05, "run")  # type: ignore[arg-type]


def test_speedups_by_cost() -> None:
    def cell(part: Any, seconds: float, **fields: Any) -> Timed:
        return Timed(Cell(part, 8, 512, **fields), {"batch": 8, "round_seconds": seconds})

    found = [
        cell("decode", 1.0),
        cell("verify", 1.1, drafts=2),
        cell("verify", 1.3, drafts=4),
        cell("draft", 1.3 + 4 * 0.25, drafts=4, weights="int4"),
    ]
    best = by_cost(found)[0]
    values = {
        k: (1 - 0.9 ** (k + 1)) / 0.1 / (0.25 * k + v)
        for k, v in {1: 1.05, 2: 1.1, 3: 1.2, 4: 1.3, 5: 1.4, 6: 1.5, 7: 1.6, 8: 1.7}.items()
    }
    assert best.speedup == pytest.approx(max(values.values()))
    assert values[best.draft_tokens] == max(values.values())
    assert speedup(3, 0.0, 1.0, 1.0, 1.0) == 4.0
    assert seconds_of([(1, 2.0)], 9) == 2.0
    # Without a plain step of the same batch and context nothing can be said, nor of what is noise.
    assert not by_cost(found[1:])
    assert not by_cost([*found[:3], cell("draft", 1.29, drafts=4)])


@pytest.fixture(scope="module")
def costs() -> Costs:
    made = Costs()
    made.load({"shape": "tiny", "weights": "full", "threads": 1})
    return made


@pytest.mark.parametrize(
    "cell",
    [
        Cell("decode", 3, 100),
        Cell("draft", 2, 130, dropped=2, share=0.5, drafts=2),
        Cell("verify", 2, 100, drafts=3),
        Cell("decode", FULL, 200),
        Cell("eager", 1, 100),
    ],
    ids=str,
)
def test_cells_are_timed_in_the_middle_of_decoding(costs: Costs, cell: Cell) -> None:
    ready = costs.prepare(cell.to_dict())
    engine = costs._engine
    assert engine is not None
    before = engine.counters
    # The shared part of the prompts was computed once, the arena holds a full batch.
    assert before.num_running == ready["batch"] and (cell.batch in (FULL, ready["batch"]))
    if ready["batch"] > 2 and cell.batch:
        assert before.num_cached_tokens > 0
    answer = costs.run()
    after = engine.counters
    rounds = (after.num_spec_steps - before.num_spec_steps) / ready["batch"]
    drafted = after.num_draft_tokens - before.num_draft_tokens
    assert drafted == cell.drafts * rounds * ready["batch"]
    assert answer["round_low"] <= answer["round_seconds"] <= answer["round_high"]
    assert answer["tokens_per_round"] == 1 + cell.drafts  # all drafts say the same token
    assert answer["context"] >= cell.context


def test_a_prefill_has_no_prompt_in_common(costs: Costs) -> None:
    ready = costs.prepare(Cell("prefill", 1, 120).to_dict())
    assert costs.run()["batch"] == ready["batch"] == 1
    assert costs._engine is not None
    assert costs._engine.counters.prompt_tokens == 4 * 120
    assert costs._engine.counters.num_cached_tokens == 0


def test_cells_that_do_not_fit_say_so(costs: Costs, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "positions" in costs.prepare(Cell("decode", 1, 2000).to_dict())["skipped"]
    monkeypatch.setattr("jobs.bench.gpu.costs.available_bytes", lambda: 10**6)
    skipped = costs.prepare(Cell("decode", 500, 128).to_dict())["skipped"]
    assert "GB of keys and values do not fit into the free memory" in skipped
    with pytest.raises(ValueError, match="no fp3 draft weights"):
        costs.load({"shape": "tiny", "weights": "fp3", "threads": 1})


def test_dropped_layers_are_spread() -> None:
    assert spread(0, 40) == () and spread(38, 40) == tuple(range(1, 39))
    assert len(set(spread(24, 40))) == 24 and max(spread(24, 40)) < 39
    assert draft_of(Cell("draft", 1, 10, dropped=30, drafts=2), 6).drop.attention == (1, 2, 3, 4)
    assert draft_of(Cell("verify", 1, 10, drafts=2), 6).drafter == "ngram"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--device", "cpu"), "--device is cpu: it must be cuda for llama-2-13b, or add --tiny"),
        (("--minutes", "0", "--tiny"), "--minutes is 0: it must be above 0"),
        (("--peer-python", "/no/python"), "--peer-python is /no/python"),
        (("--tiny", "--record", "/no/folder/x.json"), "its folder must exist"),
    ],
)
def test_mistakes_are_told_before_anything_starts(
    admg_batch: Callable[..., Result], given: tuple[str, ...], said: str
) -> None:
    done = admg_batch("bench", "gpu", *given)
    assert done.exit_code == 2 and said in done.output, done.output


def test_no_gpu_is_said(admg_batch: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    done = admg_batch("bench", "gpu")
    assert done.exit_code == 2 and "torch sees no CUDA device here" in done.output


def test_a_model_that_cannot_be_widened_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def widened(seconds: float = 60.0) -> Path:
        clock, folder = Clock(seconds / 60), tmp_path / "wide"
        return text.widened_folder(
            str(tmp_path), "llama-2-13b", folder, "cpu", clock, lambda _: None
        )

    def failing(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 2, "", "widening\nError: model is 'x'")

    def endless(command: list[str], timeout: float, **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", failing)
    with pytest.raises(LeftOutError, match=r"^model is 'x'$"):
        widened()
    monkeypatch.setattr(subprocess, "run", endless)
    with pytest.raises(LeftOutError, match="was not made in 0 s"):
        widened()
    (tmp_path / text.MADE).write_text("{}")
    assert widened() == tmp_path  # it is wide already


def test_what_breaks_in_a_part_costs_that_part(
    fake: type[FakeWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("something that nobody has thought of")

    monkeypatch.setattr(harness, "_text", broken)
    found = harness.run(replace(Settings(), parts=("dummy", "widened")), lambda _: None)
    assert found.costs.timed
    assert "nobody has thought of" in found.text.left_out["the rest of the real text"]


def test_it_needs_no_cluster_and_no_data_sets() -> None:
    """A machine with a GPU may have torch and transformers, and little of what jobs need."""
    code = """
import sys
for name in ("ray", "datasets", "tomli_w", "rouge_score", "moto"):
    sys.modules[name] = None
import jobs.bench.gpu.command, jobs.cli
import jobs.bench.gpu.harness, jobs.bench.gpu.page, jobs.bench.gpu.record, jobs.bench.gpu.costs
import jobs.bench.show, pipeline.signals, jobs.bench.ours, jobs.widened, jobs.demo_model
from jobs.bench.workloads import load_texts
assert load_texts("demo", None, 4)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_tiny_run_from_end_to_end(tmp_path: Path) -> None:
    """All parts with their own processes, about a minute.

    pytest -m slow tests/jobs/test_bench_gpu.py
    """
    command = [sys.executable, "-m", "jobs", "bench", "gpu", "--device", "cpu", "--tiny"]
    command += ["--threads", "1", "--record", "r.json", "--html", "r.html"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout.splitlines()[-1])
    recorded = json.loads((tmp_path / "r.json").read_text())
    assert recorded["command"] and recorded["date"] and recorded["costs"] == content["costs"]
    measured = {c["part"] for c in content["costs"]}
    assert measured >= {"decode", "prefill", "draft", "verify"}
    assert {c["system"] for c in content["text"]["cells"]} == {"plain", "auto", "transformers"}
    assert content["text"]["layers"] == 6 and content["by_cost"]
    assert (tmp_path / "r.html").read_text().count("<svg") == 3
