"""Two outputs on a terminal, and what a page shows of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.console import printable
from jobs.report.compare import METRICS, Comparison
from jobs.report.svg import INK, SERIES, Plot, figure, svg
from jobs.report.text import is_secret
from jobs.terminal import terminal
from pipeline.redaction import redacted

if TYPE_CHECKING:
    from rich.console import Console

_NAMES = {
    "speedup": "speedup of a row",
    "mean_acceptance_length": "mean acceptance length",
    "draft_acceptance_rate": "draft acceptance rate",
    "completion_tokens": "tokens in completions",
    "decode_seconds": "seconds of decoding",
}
_FEWEST_POINTS = 3

Line = tuple[str, str, str, str]


def names(comparison: Comparison) -> tuple[str, str]:
    """Short names of the two outputs, or A and B where these are the same."""
    short = [
        redacted(r.output).rstrip("/").rpartition("/")[2] for r in (comparison.a, comparison.b)
    ]
    return ("A", "B") if short[0] == short[1] or not all(short) else (short[0], short[1])


def sentences(comparison: Comparison) -> list[str]:
    """What matters first: are the texts the same, and which is the faster one."""
    c = comparison
    said = [
        f"{c.rows_common:,} rows in common, {c.rows_only_a:,} and {c.rows_only_b:,} in one only"
    ]
    if c.both_ok:
        share = c.same_completions / c.both_ok
        word = "all" if c.same_completions == c.both_ok else f"{100 * share:.4g} %"
        said.append(
            f"{c.same_completions:,} of {c.both_ok:,} completions are the same ({word}), "
            f"{c.different_completions:,} differ"
        )
    if c.ok_only_a or c.ok_only_b:
        said.append(f"{c.ok_only_a:,} rows failed in the second only, {c.ok_only_b:,} in the first")
    if c.share < 1:
        said.append(f"counts of rows are of {100 * c.share:.3g} % of the ids, the same in both")
    return said


def headline(comparison: Comparison) -> list[Line]:
    """A line a number: its name, both values, the difference."""
    a, b = comparison.a, comparison.b
    lines: list[Line] = [
        ("rows", f"{a.rows:,}", f"{b.rows:,}", f"{b.rows - a.rows:+,}"),
        (
            "error rows",
            f"{a.rows_error:,}",
            f"{b.rows_error:,}",
            f"{b.rows_error - a.rows_error:+,}",
        ),
    ]
    for title, name in (
        ("speedup, all tokens", "speedup"),
        ("end to end", "speedup_end_to_end"),
        ("tokens per pass", "mean_acceptance_length"),
        ("tokens/s, last run", "tokens_per_second"),
    ):
        lines.append((title, *_beside(getattr(a, name), getattr(b, name))))
    for name in METRICS:
        pair = comparison.paired.get(name)
        if pair is not None:
            error = "" if pair.standard_error is None else f" ± {pair.standard_error:.2g}"
            change = f"{pair.difference:+.3g}{error}"
            lines.append((f"{_NAMES[name]} *", f"{pair.a:.3f}", f"{pair.b:.3f}", change))
    return lines


def _beside(a: float | None, b: float | None) -> tuple[str, str, str]:
    shown = ["-" if v is None else f"{v:.2f}" for v in (a, b)]
    return shown[0], shown[1], "-" if a is None or b is None else f"{b - a:+.2f}"


def differences(comparison: Comparison) -> dict[str, tuple[str, str]]:
    """Settings that differ, as text."""
    return {
        name: (_setting(name, pair[0]), _setting(name, pair[1]))
        for name, pair in comparison.settings.items()
    }


def _setting(name: str, value: Any) -> str:
    if is_secret(name):
        return "***"
    return "-" if value is None else redacted(str(value))


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print the sentences, the numbers, the settings and rows that differ."""
    from rich.table import Table
    from rich.text import Text

    console = console or terminal()
    for sentence in sentences(comparison):
        console.print(Text(sentence))
    table = Table(title="Beside each other", title_justify="left")
    for heading in ("", *names(comparison), "difference"):
        table.add_column(Text(printable(heading)), justify="left" if not heading else "right")
    for line in headline(comparison):
        table.add_row(*(Text(value) for value in line))
    console.print(table)
    console.print(Text("* means over the rows that both have; ± one standard error", "dim"))
    found = differences(comparison)
    if found:
        table = Table(title="Settings that differ", title_justify="left")
        for heading in ("", *names(comparison)):
            table.add_column(Text(printable(heading)), overflow="fold")
        for name, pair in found.items():
            table.add_row(*(Text(printable(value)) for value in (name, *pair)))
        console.print(table)
    for example in comparison.examples[:2]:
        same = f"{example['id']}: the same for {example['same_characters']} characters, then"
        console.print(Text(printable(same), "bold"))
        for side, name in zip(("a", "b"), names(comparison), strict=True):
            console.print(Text(printable(f"  {name}: {example[side][:160]}")))


def plots(comparison: Comparison) -> list[Plot]:
    """Speedup and acceptance of the common rows, both sides in one drawing."""
    found = [
        _overlay(comparison, "speedup", "Speedup", "speedup of a row, decoding"),
        _overlay(comparison, "mean_acceptance_length", "Mean acceptance length", "tokens per pass"),
        _ratios(comparison),
    ]
    return [plot for plot in found if plot is not None]


def _overlay(comparison: Comparison, name: str, title: str, xlabel: str) -> Plot | None:
    from jobs.report.text import shown

    pair = comparison.values[name]
    if len(pair[0]) < _FEWEST_POINTS:
        return None
    both = np.concatenate(pair)
    low, high = np.quantile(both, (0.002, 0.998))
    edges = np.linspace(low, max(high, low + 0.05), 31)
    with figure(f"both-{name}") as (drawn, ax):
        for values, label, color in zip(pair, names(comparison), SERIES, strict=False):
            clipped = values.clip(edges[0], edges[-1])
            ax.hist(clipped, edges, color=color, alpha=0.3, label=shown(label)[:24])
            ax.hist(clipped, edges, color=color, histtype="step", linewidth=1.4)
        ax.set(xlabel=xlabel, ylabel="rows")
        drawn.legend(loc="outside upper left", ncols=2, handlelength=1.0)
        text = svg(f"both-{name}", drawn)
    medians = " and ".join(f"{np.median(values):.2f}" for values in pair)
    return Plot(f"both-{name}", title, text, f"{len(pair[0]):,} common rows; medians {medians}.")


def _ratios(comparison: Comparison) -> Plot | None:
    a, b = comparison.values["speedup"]
    if len(a) < _FEWEST_POINTS or (a <= 0).any():
        return None
    ratio = b / a
    low, high = np.quantile(ratio, (0.002, 0.998))
    edges = np.linspace(low, max(high, low + 0.05), 31)
    with figure("ratios") as (drawn, ax):
        ax.hist(ratio.clip(edges[0], edges[-1]), edges, color=SERIES[2], rwidth=0.92)
        ax.axvline(1.0, color=INK, linewidth=1.2, linestyle=(0, (3, 2)))
        ax.set(xlabel="speedup in the second / in the first", ylabel="rows")
        text = svg("ratios", drawn)
    faster = f"{100 * (ratio > 1).mean():.0f} % of the rows have a higher speedup in the second."
    return Plot("ratios", "Row by row", text, faster)
