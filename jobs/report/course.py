"""The plots of what happened when: throughput, and which drafter drafted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa

from jobs.report.svg import INK, SERIES, Plot, figure, svg
from jobs.report.timeline import Timeline
from pipeline.commit_times import tokens_by_source

_FEWEST_ROWS, _ROWS_OF_A_BIN, _MOST_BINS = 8, 4, 40
_MINUTE, _HOUR = 60.0, 3600.0


def throughput(course: Timeline | None) -> Plot | None:
    """Tokens a second over time at work."""
    if course is None:
        return None
    unit, seconds = _unit(course.seconds)
    edges = [edge / seconds for edge in course.edges]
    rates = course.tokens_per_second
    with figure("throughput") as (drawn, ax):
        ax.stairs(rates, edges, fill=True, color=SERIES[0], alpha=0.25)
        ax.stairs(rates, edges, color=SERIES[0], linewidth=1.8)
        for pause in course.pauses:
            ax.axvline(pause / seconds, color=INK, linewidth=1.0, linestyle=(0, (2, 2)))
        ax.set(xlabel=f"{unit} at work", ylabel="tokens/s", xlim=(edges[0], edges[-1]))
        ax.set_ylim(0, 1.1 * max(*rates, 1e-9))
        text = svg("throughput", drawn)
    pauses = " Dashed: time between runs was left out." if course.pauses else ""
    return Plot(
        "throughput",
        "Throughput over time",
        text,
        f"Completion tokens per second, from the times at which {course.commits:,} blocks were "
        f"committed{_partly(course)}.{pauses}",
    )


def drafters(course: Timeline | None, rows: pa.Table, totals: Mapping[str, int]) -> Plot | None:
    """Shares of draft tokens by source: over time, or over the rows where times are not known."""
    if not sum(totals.values()):
        return None
    whole = sum(totals.values())
    said = ", ".join(f"{name} {100 * n / whole:.0f} %" for name, n in list(totals.items())[:6])
    if course is not None and course.drafter_shares:
        unit, seconds = _unit(course.seconds)
        edges = [edge / seconds for edge in course.edges]
        # In the order of the totals, so that a colour is a drafter's in every report of it.
        shares = {n: course.drafter_shares[n] for n in totals if n in course.drafter_shares}
        text = _stacked(edges, shares, f"{unit} at work")
        title = "Drafters over time"
    elif rows.num_rows >= _FEWEST_ROWS:
        shares, edges = _over_rows(rows, list(totals))
        text = _stacked(edges, shares, "% of the rows, in the order of their ids")
        title = "Drafters over the rows"
    else:
        return None
    return Plot("drafters", title, text, f"Where draft tokens came from. In all: {said}.")


def _unit(seconds: float) -> tuple[str, float]:
    if seconds < 3 * _MINUTE:
        return "seconds", 1.0
    return ("minutes", _MINUTE) if seconds < 3 * _HOUR else ("hours", _HOUR)


def _partly(course: Timeline) -> str:
    return "" if course.share > 0.995 else f" ({100 * course.share:.0f} % of the rows)"


def _over_rows(rows: pa.Table, names: Sequence[str]) -> tuple[dict[str, list[float]], list[float]]:
    bins = int(np.clip(rows.num_rows // _ROWS_OF_A_BIN, 2, _MOST_BINS))
    places = np.linspace(0, rows.num_rows, bins + 1).astype(int)
    column = rows["drafter_tokens"]
    found = [tokens_by_source(column.slice(a, b - a)) for a, b in pairwise(places)]
    sums = [sum(tokens.values()) for tokens in found]
    shares = {
        name: [t.get(name, 0) / s if s else 0.0 for t, s in zip(found, sums, strict=True)]
        for name in names
    }
    return shares, np.linspace(0, 100, bins + 1).tolist()


def _stacked(edges: Sequence[float], shares: Mapping[str, Sequence[float]], xlabel: str) -> str:
    from jobs.report.text import shown

    with figure("drafters") as (drawn, ax):
        below = np.zeros(len(edges))
        for i, (source, values) in enumerate(shares.items()):
            part = 100 * np.nan_to_num(np.array(values, float))
            above = below + np.append(part, part[-1])  # a step needs its last value twice
            color, label = SERIES[i % len(SERIES)], shown(source)[:20]
            ax.fill_between(edges, below, above, step="post", color=color, label=label, lw=0)
            below = above
        ax.set(xlabel=xlabel, ylabel="% of draft tokens", ylim=(0, 100))
        ax.set_xlim(edges[0], edges[-1])
        ax.grid(False)
        drawn.legend(loc="outside upper left", ncols=3, handlelength=1.0, columnspacing=1.2)
        return svg("drafters", drawn)
