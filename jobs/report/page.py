"""Pages: one HTML file each, with its style and its plots inside, without scripts.

Every value goes through the template's own escaping, and before that through `shown` and
`redacted`: completions, ids and messages are anybody's text. The same output gives the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from jobs.report import course, plots
from jobs.report.details import Details
from jobs.report.render import render
from jobs.report.text import is_secret
from jobs.whole_file import write_whole
from pipeline.file_systems import resolve
from pipeline.manifest import MANIFEST, RUN
from pipeline.redaction import redacted
from pipeline.storage import STATE, Store

if TYPE_CHECKING:
    from jobs.report.compare import Comparison

_MOST_FILES = 50


def check_place(html: str, *outputs: str) -> None:
    """Refuse a place that no page should or could be written to.

    Raises:
        ValueError: a folder, a folder that is not there, or one that holds results.
    """
    system, path = resolve(html)
    parent = os.path.dirname(path)
    for output in outputs:
        if Store(output).root == parent:
            good = os.path.join(output, STATE, "report.html")
            raise ValueError(
                f"--html is {html!r}: it must not lie among the results, whose readers take every "
                f"file there for one; {good} is a good place"
            )
    if system.type_name == "local" and os.path.isdir(path):
        raise ValueError(f"--html is {html!r}: it must be a file and not a folder")
    if system.type_name == "local" and not os.path.isdir(parent):
        raise ValueError(f"--html is {html!r}: it must be in a folder that exists")


def write_page(html: str, text: str) -> None:
    """Write a page, whole or not at all."""
    system, path = resolve(html)
    if system.type_name != "local":
        with system.open_output_stream(path) as stream:
            stream.write(text.encode())
        return
    write_whole(Path(path), text)


def details_page(details: Details, html: str) -> str:
    """The page of one output; `html` is where it will lie, for its links."""
    report, rows = details.report, details.rows
    sections = {
        "Speed": [
            plots.speedups(rows),
            plots.speedup_by_prompt(rows),
            plots.speedup_by_queue(rows),
        ],
        "Drafts": [
            plots.acceptance(rows),
            plots.by_position(details.positions),
            course.drafters(details.course, rows, details.drafter_tokens),
            plots.dropped_layers(details.layers),
            plots.similarities(rows),
        ],
        "Work": [course.throughput(details.course), plots.lengths(rows)],
    }
    drawn = {title: [p for p in found if p is not None] for title, found in sections.items()}
    return render(
        "page.html",
        title=_name_of(report.output),
        details=details,
        report=report,
        sampled=report.rows_sampled < report.rows,
        sections={title: found for title, found in drawn.items() if found},
        settings=_settings(details.settings.config),
        links=_links(details, html),
        files=dict(list(details.files.items())[:_MOST_FILES]),
    )


def comparison_page(comparison: Comparison) -> str:
    """The page of two outputs beside each other."""
    from jobs.report import compare_views as views

    names = views.names(comparison)
    return render(
        "comparison.html",
        title=f"{names[0]} and {names[1]}",
        comparison=comparison,
        names=names,
        sentences=views.sentences(comparison),
        headline=views.headline(comparison),
        differences=views.differences(comparison),
        plots=views.plots(comparison),
    )


def _name_of(output: str) -> str:
    return redacted(output).rstrip("/").rpartition("/")[2] or output


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    return {name: setting(name, value) for name, value in config.items()}


def setting(name: str, value: Any) -> str:
    """A setting's value for people."""
    if is_secret(name):
        return "***"
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(str(v) for v in value) or "-"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _links(details: Details, html: str) -> dict[str, str]:
    """Relative addresses of files of the output by name; none where it is not on this disk."""
    store, (system, path) = Store(details.report.output), resolve(html)
    if store.filesystem.type_name != "local" or system.type_name != "local":
        return {}
    names = [n for n in (MANIFEST, RUN) if store.exists(n)]
    names += list(details.files)[:_MOST_FILES]
    folder = os.path.dirname(path)
    return {n: "./" + quote(os.path.relpath(store.path(n), folder)) for n in names}
