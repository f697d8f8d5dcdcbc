"""The page's plots, as SVG files that need no page around them; a plot of nothing is left out."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from jobs.bench.paper.bootstrap import Estimate
from jobs.bench.paper.modelling import left_out, shape_of
from jobs.bench.paper.numbers import over_tasks, per_pass, system_rows, tasks_of, told
from jobs.bench.paper.page_ablations import group_rows
from jobs.bench.paper.page_controls import ALL, CONTROLS, control, counts_of
from jobs.bench.paper.record import Record
from jobs.bench.paper.variants import SYSTEMS
from jobs.report.svg import SERIES, WIDTH, figure, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The colours that a page would give; readers' dark mode is heeded.
_LIGHT = ("#1f2328", "#59636e", "#d1d9e0")
_DARK = ("#f0f6fc", "#9198a1", "#3d444d")
_SERIES = ("#2a6fdb", "#d9730d", "#2e9e5b", "#9a4fd0", "#c23b4e", "#6b7280")


def plots(record: Record) -> dict[str, tuple[str, str]]:
    """File name without its ending: the SVG and its caption."""
    makers: tuple[Callable[[Record], tuple[str, str, str] | None], ...]
    makers = (_controls, _systems, _bytes)
    found = [made for make in makers if (made := make(record)) is not None]
    return {name: (standalone(text), caption) for name, text, caption in found}


def standalone(text: str) -> str:
    """An SVG that takes its colours from a page, with colours and a size of its own."""
    series = "".join(f"--series-{i}:{color};" for i, color in enumerate(_SERIES))
    light, dark = (
        "".join(f"--{n}:{c};" for n, c in zip(("ink", "muted", "grid"), colors, strict=True))
        for colors in (_LIGHT, _DARK)
    )
    style = (
        f"<style>svg{{{light}{series}font-family:sans-serif}}"
        f"@media (prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    )
    return (
        re.sub(r"^<svg([^>]*)>", rf'<svg\1 width="{1.6 * WIDTH:.0f}">\n{style}', text, count=1)
        + "\n"
    )


def _controls(record: Record) -> tuple[str, str, str] | None:
    counts = counts_of(record)
    if not counts:
        return None
    with figure("paper-controls") as (drawn, ax):
        for place, kind in enumerate(CONTROLS):
            found = [control(record, count, kind, ALL, "greedy") for count in counts]
            values = [None if c is None else told(c) for c in found]
            _points(ax, place, len(CONTROLS), counts, values, CONTROLS[kind])
        ax.set(ylabel="tokens per target pass", xlabel="attention layers dropped")
        ax.set_xticks(range(len(counts)), [str(c) for c in counts])
        drawn.legend(loc="outside upper left", ncols=1)
        text = svg("paper-controls", drawn)
    caption = "Per-input choice beside the controls: greedy, all texts, 95 % intervals."
    return "paper-controls", text, caption


def _systems(record: Record) -> tuple[str, str, str] | None:
    tasks = tasks_of(record)
    found = {}
    for system in SYSTEMS:
        sets = over_tasks([system_rows(record, system, task, "greedy") for task in tasks])
        if sets and system != "plain":
            found[SYSTEMS[system]] = told(per_pass(sets))
    if not found:
        return None
    with figure("paper-systems", 60.0 + 26.0 * len(found)) as (drawn, ax):
        for place, (_, value) in enumerate(found.items()):
            if value is not None:
                bars = [[value.value - value.low], [value.high - value.value]]
                ax.errorbar(value.value, place, xerr=bars, fmt="o", color=SERIES[0], capsize=2)
        ax.axvline(1.0, color=SERIES[5], linewidth=1.0, linestyle=(0, (3, 2)))
        ax.set_yticks(range(len(found)), list(found))
        ax.set_ylim(len(found) - 0.5, -0.5)
        ax.grid(axis="x")
        ax.set(xlabel="tokens per target pass")
        text = svg("paper-systems", drawn)
    caption = "Tokens per target pass, greedy, all texts, 95 % intervals; plain decoding is at 1."
    return "paper-systems", text, caption


def _bytes(record: Record) -> tuple[str, str, str] | None:
    rows = group_rows(record, "bytes")
    if not rows:
        return None
    shape = shape_of(record.about)
    ways: dict[str, list[tuple[float, Estimate]]] = {}
    for name, own in rows.items():
        value = told(per_pass([own]))
        if value is not None:
            way = name.partition("/")[2]
            ways.setdefault(way, []).append((100 * left_out([own], shape).kv_share, value))
    with figure("paper-bytes") as (drawn, ax):
        for i, (way, points) in enumerate(ways.items()):
            points.sort(key=lambda point: point[0])
            ax.errorbar(
                [x for x, _ in points],
                [v.value for _, v in points],
                yerr=[v.error for _, v in points],
                marker="o",
                markersize=3,
                capsize=2,
                color=SERIES[i % len(SERIES)],
                label=way,
            )
        ax.set(xlabel="% of keys and values not read by drafts", ylabel="tokens per target pass")
        drawn.legend(loc="outside upper left", ncols=2)
        text = svg("paper-bytes", drawn)
    return "paper-bytes", text, "What to leave out: greedy, all texts, standard errors."


def _points(
    ax: Axes,
    place: int,
    places: int,
    counts: list[int],
    values: list[Estimate | None],
    label: str,
) -> None:
    known = [(i, v) for i, v in enumerate(values) if v is not None]
    at = [i + 0.6 * (place / (places - 1) - 0.5) for i, _ in known]
    bars = [[v.value - v.low for _, v in known], [v.high - v.value for _, v in known]]
    middle = [v.value for _, v in known]
    ax.errorbar(at, middle, yerr=bars, fmt="o", color=SERIES[place], capsize=2, label=label)
