"""What a calibration has found, for people: tables, and a plot of the similarity profile."""

from __future__ import annotations

from collections import Counter
from statistics import mean
from typing import TYPE_CHECKING

from jobs.calibrate.admg import Calibrated, Profile, jaccard
from jobs.calibrate.draft_verify import Found
from jobs.report.svg import GRID, INK, MUTED, SERIES, figure

if TYPE_CHECKING:
    from rich.table import Table

_BAR = 20
# The page's colours, for a picture that stands alone: fit for light backgrounds.
_COLOURS = {
    INK: "#1b1b1b",
    MUTED: "#666666",
    GRID: "#dddddd",
    SERIES[0]: "#2f6fb5",
    SERIES[1]: "#c2571a",
}


def bar(share: float) -> str:
    """A share of 1 as a bar of text."""
    full = round(_BAR * max(0.0, min(1.0, share)))
    return "#" * full + "." * (_BAR - full)


def profile_table(found: Calibrated) -> Table:
    """Per layer: similarities over the prompts, and how often the chosen threshold drops it."""
    from rich.table import Table

    table = Table(title="Similarity of attention layers, over the prompts")
    table.add_column("layer", justify="right")
    for name in ("lowest", "mean", "highest"):
        table.add_column(name, justify="right")
    table.add_column("dropped by", no_wrap=True)
    times = Counter(layer for chosen in found.chosen for layer in chosen)
    count = len(found.chosen)
    for layer in range(found.profile.num_layers):
        values = found.profile.column(layer)
        share = times[layer] / count
        cells = [f"{v:.4f}" for v in (min(values), mean(values), max(values))]
        table.add_row(str(layer), *cells, f"{bar(share)} {100 * share:3.0f} %")
    return table


def levels_table(found: Calibrated) -> Table:
    """Per threshold that was decoded with: what came of it."""
    from rich.table import Table

    table = Table(title="Thresholds, decoded with")
    names = ("threshold", "layers dropped", "tokens per pass", "accepted", "modelled speedup")
    for name in names:
        table.add_column(name, justify="right")
    for level in found.levels:
        table.add_row(
            f"{level.threshold:.6f}",
            f"{level.mean_count:.2f}",
            f"{level.decoded.tokens_per_pass:.2f}",
            f"{100 * level.decoded.acceptance_rate:.0f} %",
            f"{level.speedup:.3f}" + (" *" if level is found.best else ""),
        )
    return table


def reported(found: Calibrated) -> str:
    """What the chosen threshold comes to where it was not chosen, in a sentence."""
    level = found.reported
    others = "the same" if level is found.best else "other"
    return (
        f"On {len(level.chosen)} {others} prompts: {level.mean_count:.2f} layers dropped, "
        f"{level.decoded.tokens_per_pass:.2f} tokens per pass, modelled speedup "
        f"{level.speedup:.3f}."
    )


def best_of(found: Found) -> str:
    """How the best set's number is to be read, in a sentence."""
    unit = " tokens per second" if found.measured else ""
    plain = f" (plain decoding: {found.plain:.3f})" if found.measured else ""
    return (
        f"{found.checked[0].value:.3f}{unit}{plain} is the best of {len(found.checked)} by the "
        "prompts that it was chosen by: others will give a little less."
    )


def stability(found: Calibrated) -> str:
    """How much the choice hangs on the prompt, in a sentence."""
    chosen = found.chosen
    times = Counter(layer for layers in chosen for layer in layers)
    always = sorted(layer for layer, n in times.items() if n == len(chosen))
    sometimes = len(times) - len(always)
    sizes = [len(layers) for layers in chosen]
    return (
        f"Of {len(chosen)} prompts each drops {min(sizes)} to {max(sizes)} layers; {len(always)} "
        f"layers are dropped by all of them, {sometimes} by some; two prompts share "
        f"{100 * jaccard(chosen):.0f} % of what either drops (mean Jaccard index "
        f"{jaccard(chosen):.2f})."
    )


def sets_table(found: Found) -> Table:
    """Per checked set of sub-layers: what it promised, and what came of it on other prompts."""
    from rich.table import Table

    table = Table(title="Best sets, decoded with on prompts that were not searched on")
    table.add_column("attention left out")
    table.add_column("MLPs left out")
    value = "tokens per second" if found.measured else "modelled speedup"
    for name in ("promised", "tokens per pass", "accepted", value, "same text"):
        table.add_column(name, justify="right")
    for checked in found.checked:
        table.add_row(
            _numbers(checked.layers.attention),
            _numbers(checked.layers.mlps),
            f"{checked.promised:.3f}",
            f"{checked.decoded.tokens_per_pass:.2f}",
            f"{100 * checked.decoded.acceptance_rate:.0f} %",
            f"{checked.value:.3f}",
            f"{100 * checked.identical:.0f} %",
        )
    return table


def _numbers(layers: tuple[int, ...]) -> str:
    return ", ".join(map(str, layers)) or "-"


def profile_svg(profile: Profile, threshold: float) -> str:
    """The similarity profile as an SVG file's text: a line for the mean, a band for all prompts."""
    import io

    layers = list(range(profile.num_layers))
    columns = [profile.column(layer) for layer in layers]
    with figure("profile") as (drawn, ax):
        low, high = [min(c) for c in columns], [max(c) for c in columns]
        ax.fill_between(layers, low, high, color=SERIES[0], alpha=0.25, linewidth=0)
        ax.plot(layers, [mean(c) for c in columns], color=SERIES[0], marker="o", markersize=3)
        ax.axhline(threshold, color=SERIES[1], linestyle=(0, (3, 2)))
        ax.annotate(
            f"threshold {threshold:.4f}",
            (0.02, threshold),
            (0, 3),
            ("axes fraction", "data"),
            "offset points",
            color=SERIES[1],
        )
        ax.set(xlabel="attention layer", ylabel="similarity")
        out = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        drawn.savefig(out, format="svg", metadata=nothing)
    text = out.getvalue()
    for stand_in, colour in _COLOURS.items():
        text = text.replace(stand_in, colour)
    return text
