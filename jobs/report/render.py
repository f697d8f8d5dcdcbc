"""Templates filled: values escaped, numbers as people read them, nothing from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, Protocol

from jobs.console import duration
from jobs.report.svg import Plot
from jobs.report.text import shown
from pipeline.redaction import redacted


class Table(Protocol):
    """A table of texts."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str


def measurements_page(
    title: str, drawn: Sequence[Plot], tables: Sequence[Table], facts: Mapping[str, str]
) -> str:
    """The page of a benchmark: its plots, its tables, and what it was measured with."""
    return render("measurements.html", title=title, plots=drawn, tables=tables, facts=facts)


def number(value: float | None, digits: int = 2) -> str:
    """A number for people, or a dash."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:,.{digits}f}"


def count(value: int | None) -> str:
    """A whole number with its thousands apart."""
    return "-" if value is None else f"{value:,}"


def error(value: float | None) -> str:
    """A standard error with its sign; nothing where it is not known."""
    return "" if value is None else f" ± {number(value, 2 if value >= 0.0095 else 3)}"


def percent(value: float | None) -> str:
    """A share; small ones with more digits."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{100 * value:.0f}\u00a0%" if value >= 0.1 else f"{100 * value:.2g}\u00a0%"


def render(template: str, **values: Any) -> str:
    """The page of a template."""
    from jinja2 import DictLoader, Environment, StrictUndefined
    from markupsafe import Markup, escape

    folder = resources.files("jobs.report") / "templates"
    sources = {f.name: f.read_text(encoding="utf-8") for f in folder.iterdir()}
    environment = Environment(
        loader=DictLoader(sources),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda v: shown(redacted(v)) if type(v) is str else v,
    )
    environment.filters |= {
        "number": number,
        "count": count,
        "percent": percent,
        "error": error,
        "duration": duration,
        # A completion says what it says: only what a browser cannot show is changed.
        "verbatim": lambda text: escape(shown(text)),
        "drawing": Markup,
    }
    return environment.get_template(template).render(style=Markup(sources["page.css"]), **values)
