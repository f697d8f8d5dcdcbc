"""The plots of a page: how rows are spread, what was accepted, what drafts left out.

A plot that has nothing to show is None.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.report.gathered import Layers, Positions, members
from jobs.report.svg import INK, MUTED, SERIES, Plot, figure, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

_FEWEST_POINTS, _MOST_POINTS = 3, 400
_MOST_POSITIONS = 16


def numbers(table: pa.Table, name: str) -> np.ndarray:
    """The values of a column that are known and finite."""
    values = pc.drop_null(table[name].combine_chunks()).to_numpy(zero_copy_only=False)
    return values[np.isfinite(values)].astype(float)


def _whole(axis: Axis) -> None:
    """Ticks at whole numbers only."""
    axis.get_major_locator().set_params(integer=True)


def _edges(values: np.ndarray, least_width: float) -> np.ndarray:
    low, high = (float(v) for v in np.quantile(values, (0.002, 0.998)))
    bins = int(np.clip(2 * len(values) ** 0.4, 6, 40))
    width = max((high - low) / bins, least_width)
    return low - width / 2 + width * np.arange(int((high - low) / width) + 2)


def _histogram(ax: Axes, values: np.ndarray, least_width: float, color: str, what: str) -> None:
    edges = _edges(values, least_width)
    ax.hist(values.clip(edges[0], edges[-1]), edges, color=color, rwidth=0.92)
    ax.set(xlabel=what, ylabel="rows")
    _whole(ax.yaxis)


def _spread(values: np.ndarray) -> str:
    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
    return f"Median {middle:.2f}; 90 % of the rows between {low:.2f} and {high:.2f}."


def speedups(rows: pa.Table) -> Plot | None:
    """How many rows have which speedup."""
    values = numbers(rows, "speedup")
    if len(values) < _FEWEST_POINTS:
        return None
    with figure("speedup") as (drawn, ax):
        _histogram(ax, values, 0.01, SERIES[0], "speedup of a row, decoding")
        ax.axvline(1.0, color=INK, linewidth=1.2, linestyle=(0, (3, 2)))
        ax.annotate("plain", (1.0, 1.0), (3, -2), ("data", "axes fraction"), "offset points",
                    color=INK, va="top")  # fmt: skip
        text = svg("speedup", drawn)
    slower = f"{100 * (values < 1).mean():.0f} % of the rows were slower"
    said = f"{_spread(values)} {slower} than plain decoding would have been."
    return Plot("speedup", "Speedup", text, said)


def acceptance(rows: pa.Table) -> Plot | None:
    """How many tokens a pass of the full model commits."""
    values = numbers(rows, "mean_acceptance_length")
    if len(values) < _FEWEST_POINTS:
        return None
    with figure("acceptance") as (drawn, ax):
        _histogram(ax, values, 0.02, SERIES[1], "tokens per pass of the full model")
        text = svg("acceptance", drawn)
    said = f"{_spread(values)} Plain decoding commits 1 token per pass."
    return Plot("acceptance", "Mean acceptance length", text, said)


def by_position(positions: Positions) -> Plot | None:
    """The share of passes that accepted the first, second, ... draft token."""
    shares = positions.reached()[:_MOST_POSITIONS]
    if not shares or not any(shares):
        return None
    with figure("positions") as (drawn, ax):
        places = np.arange(1, len(shares) + 1)
        bars = ax.bar(places, [100 * s for s in shares], color=SERIES[1], width=0.8)
        if len(shares) <= 10:
            labels = [f"{100 * s:.0f}" for s in shares]
            ax.bar_label(bars, labels, padding=2, color=MUTED, fontsize=10)
        ax.set(xlabel="position in the draft", ylabel="% of passes", xticks=places)
        text = svg("positions", drawn)
    return Plot(
        "positions",
        "Acceptance by position",
        text,
        "Of all passes of the full model, drafts or none before them, those that accepted the "
        f"draft token at this position. {positions.passes.sum():,.0f} passes.",
    )


def _against(
    name: str, rows: pa.Table, column: str, xlabel: str, log: bool
) -> tuple[str, str] | None:
    both = rows.filter(pc.and_(pc.is_valid(rows[column]), pc.is_valid(rows["speedup"])))
    x, y = both[column].to_numpy().astype(float), both["speedup"].to_numpy()
    fine = np.isfinite(x) & np.isfinite(y) & (x > 0)
    x, y = x[fine], y[fine]
    if len(x) < _FEWEST_POINTS or len(np.unique(x)) < _FEWEST_POINTS:
        return None
    shown = np.linspace(0, len(x) - 1, min(len(x), _MOST_POINTS)).astype(int)
    with figure(name) as (drawn, ax):
        alpha = 0.35 if len(shown) > 100 else 0.8
        ax.plot(x[shown], y[shown], "o", color=SERIES[0], alpha=alpha, markersize=3.5, mew=0)
        groups = np.array_split(np.argsort(x, kind="stable"), int(np.clip(len(x) // 8, 1, 12)))
        if len(groups) > _FEWEST_POINTS:
            middles = [np.median(x[g]) for g in groups]
            ax.plot(middles, [np.median(y[g]) for g in groups], color=SERIES[1])
        ax.axhline(1.0, color=INK, linewidth=1.0, linestyle=(0, (3, 2)))
        if log and x.max() > 8 * x.min():
            ax.set_xscale("log", base=2)
            ax.xaxis.set_major_formatter("{x:g}")
        low, high = np.quantile(y, (0.005, 0.995))
        room = 0.1 * max(high - low, 0.1)
        ax.set_ylim(min(low, 1.0) - room, max(high, 1.0) + room)
        ax.set(xlabel=xlabel, ylabel="speedup")
        line = "; the line is the median" if len(groups) > _FEWEST_POINTS else ""
        return svg(name, drawn), f"{len(shown)} rows{line}."


def speedup_by_prompt(rows: pa.Table) -> Plot | None:
    """Speedup against the length of the prompt."""
    found = _against("by-prompt", rows, "prompt_tokens", "tokens of the prompt", log=True)
    if found is None:
        return None
    caption = f"{found[1]} The dashed line is plain decoding."
    return Plot("by-prompt", "Speedup by prompt length", found[0], caption)


def speedup_by_queue(rows: pa.Table) -> Plot | None:
    """Speedup against the time that a row waited for a place in the batch."""
    found = _against("by-queue", rows, "queue_seconds", "seconds waited for a place", log=True)
    if found is None:
        return None
    caption = (
        f"{found[1]} Rows that waited long were decoded in a full "
        "batch; the size of the batch itself is not kept."
    )
    return Plot("by-queue", "Speedup by time in the queue", found[0], caption)


def lengths(rows: pa.Table) -> Plot | None:
    """Tokens of prompts and of completions."""
    prompts, completions = (numbers(rows, n) for n in ("prompt_tokens", "completion_tokens"))
    both = np.concatenate([prompts, completions])
    if len(both) < _FEWEST_POINTS or both.max() < 2:
        return None
    with figure("lengths") as (drawn, ax):
        edges = np.geomspace(max(both.min(), 1) * 0.9, both.max() * 1.1, 31)
        ax.hist(prompts, edges, color=SERIES[0], alpha=0.75, label="prompts")
        ax.hist(completions, edges, color=SERIES[1], alpha=0.75, label="completions")
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.set(xlabel="tokens", ylabel="rows")
        _whole(ax.yaxis)
        drawn.legend(loc="outside upper left", ncols=2)
        text = svg("lengths", drawn)
    middle = [f"{np.median(v):,.0f}" if len(v) else "none" for v in (prompts, completions)]
    caption = f"Medians: {middle[0]} tokens in prompts, {middle[1]} in completions."
    return Plot("lengths", "Lengths", text, caption)


def dropped_layers(layers: Layers) -> Plot | None:
    """A heat map: shares of rows whose draft left out a layer's attention."""
    shares = layers.dropped()
    if not shares:
        return None
    labels = [name for name, _ in shares]
    height = max(96.0, 70.0 + 21.0 * len(shares))
    with figure("dropped", height) as (drawn, ax):
        for place, (_, values) in enumerate(shares):
            # The colour's strength is its opacity: it is right on any ground.
            colors = [(SERIES[0], float(round(v, 2))) for v in values]
            ax.bar(range(len(values)), 0.92, 0.92, place - 0.46, color=colors, linewidth=0)
        ax.grid(False)
        ax.set(xlabel="layer", xlim=(-0.6, layers.count - 0.4))
        ax.set_yticks(range(len(labels)), labels)
        ax.set_ylim(len(labels) - 0.5, -0.5)
        ax.spines[:].set_visible(False)
        text = svg("dropped", drawn)
    often = np.argsort(-shares[0][1], kind="stable")[:5]
    top = ", ".join(f"{i} ({100 * shares[0][1][i]:.0f} %)" for i in often if shares[0][1][i] > 0)
    return Plot(
        "dropped",
        "Dropped attention layers",
        text,
        "Shares of rows whose draft left the layer's attention out, below by tokens of the "
        f"prompt; the stronger, the more. Most often: {top}.",
    )


def similarities(rows: pa.Table) -> Plot | None:
    """How little each attention layer changes, by the cosine that dropping goes by."""
    values, _, layer = members(rows["attention_similarity"])
    fine = np.isfinite(values)
    values, layer = values[fine], layer[fine]
    if not len(values):
        return None
    by_layer = [values[layer == i] for i in range(int(layer.max()) + 1)]
    places = np.array([i for i, found in enumerate(by_layer) if len(found)])
    low, middle, high = np.array([np.quantile(by_layer[i], (0.05, 0.5, 0.95)) for i in places]).T
    with figure("similarity") as (drawn, ax):
        ax.fill_between(places, low, high, color=SERIES[2], alpha=0.25, linewidth=0)
        ax.plot(places, middle, color=SERIES[2], marker="o", markersize=3)
        # Most lie just below 1: a few that do not would hide how the others differ.
        floor = float(np.quantile(low, 0.1)) if len(places) > 4 else float(low.min())
        ax.set_ylim(floor - 0.15 * (1.0 - floor) - 1e-4, 1.0 + 0.03 * (1.0 - floor))
        ax.set(xlabel="layer", ylabel="cosine")
        text = svg("similarity", drawn)
    cut = [str(i) for i, v in zip(places, middle, strict=True) if v < ax.get_ylim()[0]]
    below = f" Layers below the axis: {', '.join(cut[:8])}." if cut else ""
    return Plot(
        "similarity",
        "Similarity by layer",
        text,
        "Cosine between an attention layer's input and its output in the residual stream: median, "
        f"and 90 % of the rows. What is nearest to 1 is left out first.{below}",
    )
