"""A run's tables as plain values: the terminal and the page show the same ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from admg.families import ModelConfig, parse_model_config
from jobs.bench.gpu.harness import Found
from jobs.bench.gpu.text import figures
from jobs.bench.gpu.worth import (
    ACCEPTANCE,
    ByCost,
    Timed,
    by_cost,
    draft_seconds,
    prefill_flops,
    tokens_per_second,
)
from jobs.bench.memory import model_shape
from jobs.devices import Device, gpu_named
from jobs.shapes import shape_named
from jobs.sizing import step_seconds


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table with its title and a sentence about it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def data_sheet(found: Found) -> Device | None:
    """The device by its data sheet, if it is in our table."""
    return gpu_named(_name(found))


def _name(found: Found) -> str:
    return str(found.machine.get("gpu") or found.machine.get("device", ""))


def measured_device(found: Found) -> Device | None:
    """The device as the probe found it."""
    peaks = [found.machine.get(key) for key in ("peak_gbs", "peak_gflops")]
    if None in peaks:
        return None
    return Device("measured", float(peaks[0]) * 1e9, float(peaks[1]) * 1e9)


def roofline_share(found: Found, timed: Timed, device: Device | None) -> float | None:
    """The least time that a plain step can take on the device, over the time that it took."""
    if device is None:
        return None
    context = int(timed.answer["context"])
    least, _ = step_seconds(_model(found), device, timed.batch, context)
    return float(least / timed.answer["round_seconds"])


def prefill_tflops(found: Found, timed: Timed) -> float:
    """What a prefill reached, in 10^12 operations per second."""
    shape = model_shape(_model(found), 2)
    sizes = (shape.matmul_parameters, shape.attention_width)
    flops = prefill_flops(*sizes, timed.batch, timed.cell.context)
    return flops / float(timed.answer["round_seconds"]) / 1e12


def sheets(found: Found) -> list[Sheet]:
    """All tables that have a row."""
    made = [_plain(found), _eager(found), _prefill(found), _verify(found), _drafts(found)]
    return [s for s in (*made, _worth(found), _text(found), _left_out(found)) if s.rows]


def _model(found: Found) -> ModelConfig:
    return parse_model_config(shape_named(found.grid.shape))


def _of(found: Found, part: str) -> list[Timed]:
    cells = [t for t in found.costs.timed if t.cell.part == part]
    return sorted(cells, key=lambda t: (t.batch, t.cell.context, t.cell.drafts))


def _plain(found: Found) -> Sheet:
    sheet, probed = data_sheet(found), measured_device(found)
    rows = [
        (
            f"{t.batch}",
            f"{t.cell.context}",
            _ms(t.answer["round_seconds"]),
            f"{tokens_per_second(t):.0f}",
            _share(roofline_share(found, t, sheet)),
            _share(roofline_share(found, t, probed)),
        )
        for t in _of(found, "decode")
    ]
    columns = ("batch", "context", "ms a step", "tokens/s", "of data sheet", "of measured peaks")
    note = "" if sheet else f"No data sheet of {_name(found) or 'this device'} is known here."
    return Sheet("Plain decoding, and its share of the roofline", columns, tuple(rows), note)


def _prefill(found: Found) -> Sheet:
    rows = [
        (
            f"{t.cell.context}",
            _ms(t.answer["round_seconds"]),
            f"{tokens_per_second(t):.0f}",
            f"{prefill_tflops(found, t):.3g}",
        )
        for t in _of(found, "prefill")
    ]
    columns = ("prompt", "ms", "tokens/s", "TFLOP/s")
    return Sheet("Prefill of one prompt", columns, tuple(rows))


def _drafts(found: Found) -> Sheet:
    rows = []
    for t in sorted(
        _of(found, "draft"), key=lambda t: (t.batch, t.cell.weights, t.cell.share, t.cell.dropped)
    ):
        cost = draft_seconds(found.costs.timed, t)
        step = _step(found, t)
        rows.append(
            (
                *_plan(t.batch, t.cell.context, t.cell.weights, t.cell.dropped, t.cell.share),
                _ms(t.answer["round_seconds"]),
                _ms(cost),
                "-" if cost is None or step is None else f"{cost / step:.2f}",
            )
        )
    columns = (*_PLAN, "ms a round", "ms a draft pass", "plain step = 1")
    note = (
        f"Rounds of {found.grid.drafts} draft tokens, timed whole; a pass is a part of what such a "
        "round takes beyond its verification."
    )
    return Sheet("Draft passes", columns, tuple(rows), note)


def _step(found: Found, timed: Timed) -> float | None:
    """Seconds of a plain step of the same batch and context, if it was measured."""
    at = (timed.batch, timed.cell.context)
    steps = [t for t in _of(found, "decode") if (t.batch, t.cell.context) == at]
    return float(steps[0].answer["round_seconds"]) if steps else None


def _verify(found: Found) -> Sheet:
    rows = [
        (
            f"{t.batch}",
            f"{t.cell.context}",
            f"{t.cell.drafts + 1}",
            _ms(t.answer["round_seconds"]),
            _ratio(t.answer["round_seconds"], _step(found, t)),
        )
        for t in _of(found, "verify")
    ]
    columns = ("batch", "context", "tokens each", "ms", "plain step = 1")
    return Sheet("Verification", columns, tuple(rows))


def _eager(found: Found) -> Sheet:
    rows = [
        (
            f"{t.batch}",
            f"{t.cell.context}",
            _ms(t.answer["round_seconds"]),
            _ratio(t.answer["round_seconds"], _step(found, t)),
        )
        for t in _of(found, "eager")
    ]
    columns = ("batch", "context", "ms a step", "whole rounds on the device = 1")
    note = "On CUDA these are CUDA graphs; elsewhere both are the same."
    return Sheet("Plain decoding pass by pass", columns, tuple(rows), note)


def _worth(found: Found) -> Sheet:
    rows = [
        (
            *_plan(c.batch, c.context, c.weights, c.dropped, c.share),
            f"{c.draft_tokens}",
            f"{c.speedup:.2f}",
        )
        for c in costs_of(found)
    ]
    note = (
        f"By cost, acceptance {ACCEPTANCE:g} assumed: passes are measured, what is accepted is not."
    )
    columns = (*_PLAN, "draft tokens", "decode speedup")
    return Sheet("What drafts would gain", columns, tuple(rows), note)


def costs_of(found: Found) -> list[ByCost]:
    """Speedups by cost of all measured drafts, the best first in each batch."""
    rows = by_cost(found.costs.timed)
    return sorted(rows, key=lambda c: (c.batch, c.context, -c.speedup))


def _text(found: Found) -> Sheet:
    rows = []
    for e in figures(found.text):
        low, high = e["decode_ratio_low"], e["decode_ratio_high"]
        drafted = e["system"] != "plain" and low is not None
        rows.append(
            (
                e["system"],
                f"{e['batch']}",
                _number(e["prefill_tokens_per_second"]),
                _number(e["decode_tokens_per_second"]),
                _number(e["tokens_per_second"]),
                _number(e["mean_acceptance_length"], ".2f"),
                f"{e['ratio_to_plain']:.2f}",
                _number(e["decode_ratio"], ".2f"),
                f"{low:.2f}-{high:.2f}" if drafted else "",
            )
        )
    speeds = ("prefill", "decode", "end to end")
    columns = ("system", "batch", *speeds, "per pass", "ratio", "of decode", "low-high")
    note = (
        "Tokens per second, tokens per pass of the full model, and ratios to plain of the same "
        "repeat: end to end, and of decoding. The model computes what the small one does, in "
        f"{_layers(found)} layers of the wide shape."
    )
    if found.settings.tiny:
        note = "A made-up model: that all of it works, and nothing else."
    return Sheet("Real text on the widened model", columns, tuple(rows), note)


def _layers(found: Found) -> str:
    return "its" if found.text.layers is None else f"its {found.text.layers}"


def _left_out(found: Found) -> Sheet:
    rows = (*found.costs.left_out.items(), *found.text.left_out.items())
    return Sheet("Left out", ("what", "why"), rows)


_PLAN = ("batch", "context", "weights", "dropped layers", "windowed heads")


def _plan(
    batch: int, context: int, weights: str, dropped: int, share: float
) -> tuple[str, str, str, str, str]:
    return f"{batch}", f"{context}", weights, f"{dropped}", f"{share:.0%}"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.2f}"


def _ratio(value: float, other: float | None) -> str:
    return "-" if other is None else f"{value / other:.2f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _number(value: Any, form: str = ".1f") -> str:
    return "-" if value is None else format(value, form)
