"""`bench gpu`: its cells, what is made of their times, and what an interruption leaves."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from jobs.bench.gpu import harness, measuring
from jobs.bench.gpu.cells import FULL, Cell, grid_of
from jobs.bench.gpu.clock import LeftOutError, ask
from jobs.bench.gpu.goals import goals
from jobs.bench.gpu.harness import Found
from jobs.bench.gpu.page import page
from jobs.bench.gpu.record import document
from jobs.bench.gpu.settings import Settings
from jobs.bench.gpu.sheets import data_sheet, sheets
from jobs.bench.gpu.text import FULL as SIZES
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
    alone = {(c.share, c.weights) for c in drafts if not c.dropped and c.batch == 1}
    assert alone == shares
    both = {(c.batch, c.dropped, c.share) for c in drafts if c.dropped and c.share}
    assert both == {(32, 24, 0.75), (1, 24, 0.75)}


def test_all_of_it_becomes_tables_a_page_and_a_line(fake: type[FakeWorker]) -> None:
    found = run()
    content = document(found)
    assert json.loads(json.dumps(content))["machine"]["driver"] == "580.1"
    assert not content["left_out"] and len(content["costs"]) == len(found.costs.timed)
    assert data_sheet(found) is GPUS["H200"]
    one = next(c for c in content["costs"] if (c["batch"], c["context"]) == (32, 2048))
    # 25.7 GB of weights and 32 x 2048 x 0.82 MB at 4.8 TB/s.
    assert one["roofline_share"] == pytest.approx((25.7 + 53.7) / 4800 / STEP, rel=0.01)
    alone = [c for c in content["by_cost"] if not c["share"]]
    best = next(c for c in alone if c["dropped"] == 24 and c["batch"] == 32)
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


@pytest.mark.slow
def test_real_text_is_beside_plain_in_all_tables(
    fake: type[FakeWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few seconds of plots: `pytest -m slow tests/jobs/test_bench_gpu.py`."""
    entry = {"system": "auto", "batch": 1, "decode_ratio": 1.4, "decode_ratio_low": 1.3}
    entry |= {"decode_ratio_high": 1.5, "ratio_to_plain": 1.2, "ratio_low": 1.1, "ratio_high": 1.3}
    speeds = ("prefill_tokens_per_second", "decode_tokens_per_second", "tokens_per_second")
    entry |= dict.fromkeys((*speeds, "mean_acceptance_length"), 2.0)
    entries = [entry | {"batch": batch} for batch in SIZES.batches]
    found = run()
    for module in ("sheets", "goals", "page", "record"):
        monkeypatch.setattr(f"jobs.bench.gpu.{module}.figures", lambda _: entries)
    sheet = next(s for s in sheets(found) if s.title.startswith("Real text"))
    named = dict(zip(sheet.columns, sheet.rows[0], strict=True))
    assert (named["ratio"], named["of decode"], named["low-high"]) == ("1.20", "1.40", "1.30-1.50")
    states = {g.what: g.found for g in goals(found)}
    assert states["auto on the widened model, decoding, worst repeat"] == 1.3
    assert page(found).count("<svg") == 3 and document(found)["text"]["cells"] == entries
    entries = entries[1:]
    states = {g.what: g.state for g in goals(found)}
    assert states["auto on the widened model, decoding, worst repeat"] == "not measured"
    assert states["auto on the widened model, decoding, batches 1 to 8"] == "not measured"


def test_a_goal_is_not_met_by_what_was_not_timed(fake: type[FakeWorker]) -> None:
    name = "plain decoding, least share of the roofline"
    assert {g.what: g.state for g in goals(run())}[name] == "missed"
    fake.answers = {"decode, batch 8, context 4096": "it does not fit"}
    assert {g.what: g.state for g in goals(run())}[name] == "not measured"


@pytest.mark.parametrize(
    ("name", "sheet"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100-80G"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA A100-SXM4-40GB", None),
    ],
)
def test_a_data_sheet_is_of_exactly_that_gpu(
    fake: type[FakeWorker], name: str, sheet: str | None
) -> None:
    found = run()
    found.machine["gpu"] = name
    assert data_sheet(found) is (GPUS[sheet] if sheet else None)
    note = f"No data sheet of {name} is known here."
    assert sheets(found)[0].note == ("" if sheet else note)


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
    assert sum("no fp8" in why for why in left_out.values()) == 20
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
    assert content["interrupted"] and not content["complete"] and len(content["costs"]) == 5
    assert content["command"].startswith("admg-batch bench gpu --weights dummy")
    lines = done.stdout.splitlines()
    assert json.loads(lines[-1])["costs"] == content["costs"] and "roofline" in html.read_text()


def test_what_is_measured_is_kept_at_once(fake: type[FakeWorker]) -> None:
    kept: list[tuple[int, bool]] = []
    harness.run(
        Settings(parts=("dummy",)),
        lambda _: None,
        lambda found: kept.append((len(found.costs.timed), found.complete)),
    )
    cells = kept[-1][0]
    assert kept == [*((n, False) for n in range(cells + 1)), (cells, True)]


def test_time_that_is_over_leaves_out_the_rest_by_name(fake: type[FakeWorker]) -> None:
    found = run(minutes=1e-9)
    assert not found.costs.timed and found.empty
    assert set(found.costs.left_out.values()) == {"no time was left"}


def test_whatever_waits_when_the_time_is_over_is_ended(
    fake: type[FakeWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "_GRACE_SECONDS", 0.0)
    waited: list[bool] = []

    def wait(*_: object) -> None:
        time.sleep(30)
        waited.append(True)

    monkeypatch.setattr(harness, "_text", wait)
    found = harness.run(Settings(parts=("widened",), minutes=0.2 / 60), lambda _: None)
    assert not waited and not found.interrupted
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


def test_what_breaks_in_a_part_costs_that_part(
    fake: type[FakeWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("something that nobody has thought of")

    monkeypatch.setattr(harness, "_text", broken)
    found = harness.run(replace(Settings(), parts=("dummy", "widened")), lambda _: None)
    assert found.costs.timed
    assert "nobody has thought of" in found.text.left_out["the rest of the real text"]
