"""matplotlib's figures as SVG that takes its colours and its font from the page.

A figure is drawn in stand-in colours; in the text of the SVG these become the page's variables, so
one drawing is right in the light and in the dark. The same figure gives the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#010203", "#010205", "#010207"
SERIES = ("#010209", "#01020b", "#01020d", "#01020f", "#010211", "#010213")
_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    **{color: f"var(--series-{i})" for i, color in enumerate(SERIES)},
}
# Points. A figure is as wide as a phone, where it is shown at its own size.
WIDTH, HEIGHT = 360.0, 220.0
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 10.5,
    "text.color": INK,
    "text.parse_math": False,  # labels may be anybody's text
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10.5,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "legend.frameon": False,
    "legend.fontsize": 10.0,
    "figure.facecolor": "none",
    "lines.linewidth": 1.8,
}


@dataclass(frozen=True)
class Plot:
    """A drawing with its title and the sentence below it."""

    name: str
    title: str
    svg: str
    caption: str


@contextmanager
def figure(name: str, height: float = HEIGHT) -> Iterator[tuple[Figure, Axes]]:
    """A figure with one pair of axes, drawn in our settings and nobody's else."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS | {"svg.hashsalt": name})
        # Not pyplot: it keeps figures and asks for a display.
        drawn = Figure((WIDTH / 72, height / 72), layout="constrained")
        yield drawn, drawn.add_subplot()


def svg(name: str, drawn: Figure) -> str:
    """The figure as one `<svg>` element whose ids no other figure has."""
    out = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    drawn.savefig(out, format="svg", metadata=nothing)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>", "", text, count=1, flags=re.S)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.S)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"(font(?:-family)?: [^;\"]*?)(?:'[^']*'|sans-serif)[^;\"]*", r"\1inherit", text)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, variable)
    text = re.sub(r"^<svg[^>]*?viewBox=\"([^\"]*)\"[^>]*>", _opening, text, count=1, flags=re.S)
    return re.sub(r"\s*\n\s*", "\n", text).strip()


def _opening(found: re.Match[str]) -> str:
    # The caption below says what is to be seen.
    links = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
    return (
        f'<svg viewBox="{found[1]}" xmlns="http://www.w3.org/2000/svg" {links} aria-hidden="true">'
    )
