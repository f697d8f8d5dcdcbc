"""The run as one self-contained page: goals, plots, tables."""

from __future__ import annotations

from jobs.bench.gpu.goals import goals
from jobs.bench.gpu.harness import Found
from jobs.bench.gpu.sheets import (
    Sheet,
    costs_of,
    data_sheet,
    measured_device,
    roofline_share,
    sheets,
)
from jobs.bench.gpu.text import figures
from jobs.report.render import measurements_page
from jobs.report.svg import INK, SERIES, Plot, figure, svg


def page(found: Found) -> str:
    """The page's text."""
    met = Sheet(
        "Goals",
        ("goal", "at least", "found", ""),
        tuple(
            (g.what, f"{g.least:g}", "-" if g.found is None else f"{g.found:.2f}", g.state)
            for g in goals(found)
        ),
    )
    facts = {k: str(v) for k, v in (found.machine | found.versions).items()}
    facts |= {"commit": str(found.commit), "started": found.started}
    plots = [p for p in (_roofline(found), _speedups(found), _text(found)) if p is not None]
    tables = [*([met] if met.rows else []), *sheets(found)]
    title = f"{found.grid.shape} on {found.machine.get('gpu', found.machine.get('device', 'cpu'))}"
    return measurements_page(title, plots, tables, facts)


def _roofline(found: Found) -> Plot | None:
    device = data_sheet(found) or measured_device(found)
    cells = [t for t in found.costs.timed if t.cell.part == "decode"]
    if not cells or device is None:
        return None
    with figure("roofline") as (drawn, ax):
        for color, context in zip(SERIES, sorted({t.cell.context for t in cells}), strict=False):
            own = sorted((t for t in cells if t.cell.context == context), key=lambda t: t.batch)
            shares = [100 * (roofline_share(found, t, device) or 0.0) for t in own]
            ax.plot([t.batch for t in own], shares, "o-", color=color, label=f"{context} tokens")
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set(xlabel="batch", ylabel="% of the roofline", ylim=(0, None))
        ax.legend()
        text = svg("roofline", drawn)
    caption = f"Plain decoding beside the least that its bytes can take ({device.name})."
    return Plot("roofline", "Plain decoding", text, caption)


def _speedups(found: Found) -> Plot | None:
    rows = costs_of(found)
    if not rows:
        return None
    with figure("by-cost") as (drawn, ax):
        kinds = list(dict.fromkeys((c.batch, c.weights) for c in rows))
        for color, kind in zip(SERIES, kinds, strict=False):
            own = [c for c in rows if (c.batch, c.weights) == kind]
            label = f"batch {kind[0]}, {kind[1]}"
            points = [c.draft_cost for c in own], [c.speedup for c in own]
            ax.plot(*points, "o", color=color, label=label)
        ax.axhline(1.0, color=INK, linewidth=1.0, linestyle=(0, (3, 2)))
        ax.set(xlabel="draft pass, plain step = 1", ylabel="decode speedup")
        ax.legend()
        text = svg("by-cost", drawn)
    caption = f"By cost, acceptance {rows[0].acceptance:g} assumed; each point is a way to draft."
    return Plot("by-cost", "What drafts would gain", text, caption)


def _text(found: Found) -> Plot | None:
    rows = [e for e in figures(found.text) if e["system"] == "auto" and e["decode_ratio"]]
    if not rows:
        return None
    with figure("text") as (drawn, ax):
        rows.sort(key=lambda e: e["batch"])
        values = [e["decode_ratio"] for e in rows]
        below = [v - e["decode_ratio_low"] for v, e in zip(values, rows, strict=True)]
        above = [e["decode_ratio_high"] - v for v, e in zip(values, rows, strict=True)]
        places = range(len(rows))
        ax.bar(places, values, color=SERIES[0], width=0.6)
        ax.errorbar(places, values, (below, above), fmt="none", ecolor=INK, linewidth=1.2)
        ax.axhline(1.0, color=INK, linewidth=1.0, linestyle=(0, (3, 2)))
        ax.set(xlabel="batch", ylabel="decoding, plain = 1")
        ax.set_xticks(list(places), [str(e["batch"]) for e in rows])
        text = svg("text", drawn)
    caption = (
        "auto on the widened model, decoding; the lines are the lowest and the highest repeat."
    )
    return Plot("text", "Real text", text, caption)
