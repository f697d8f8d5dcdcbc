"""All that a page shows of one output, read in one go."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa

from jobs.report.chunks import id_column, kept_columns, opened, result_files
from jobs.report.examples import ErrorRows, Extremes, Failures, add_texts
from jobs.report.gathered import Error, Files, Layers, Positions, Rows
from jobs.report.read import Part, Report, Totals, gather
from jobs.report.timeline import Timeline, read_commits, timeline
from pipeline.manifest import MANIFEST, RUN, read_manifest
from pipeline.sink import FINGERPRINT_KEY
from pipeline.storage import Store

_MOST_KEPT = 3
# One-sided 95 % of a normal distribution.
_Z = 1.645


@dataclass(frozen=True)
class Cost:
    """The last run's time with a model, as far as it is known; `gpus` are those of one actor."""

    seconds: float
    actors: int
    gpus: float | None

    @property
    def actor_hours(self) -> float:
        """Actors times hours, loading included."""
        return self.actors * self.seconds / 3600

    @property
    def gpu_hours(self) -> float | None:
        """GPUs times hours; None where nobody said how many an actor has, or none."""
        return None if not self.gpus else self.gpus * self.actor_hours


@dataclass(frozen=True)
class Settings:
    """What is written beside the results: settings by dotted name, versions, the fingerprint."""

    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    run: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Details:
    """A report, and what a page shows beyond it. `rows` is a sample of `report.rows_sampled`."""

    report: Report
    speedup_error: float | None
    rows: pa.Table
    positions: Positions
    layers: Layers
    drafter_tokens: Mapping[str, int]
    course: Timeline | None
    extremes: Mapping[str, Sequence[Mapping[str, Any]]]
    failures: Sequence[Failures]
    files: Mapping[str, int]
    settings: Settings
    cost: Cost | None
    id_column: str

    @property
    def most_that_differ(self) -> float | None:
        """With 95 % certainty no larger share of all rows differs from plain decoding."""
        audit = self.report.audit
        if not audit.get("rows"):
            return None
        return upper_share(audit["rows"] - audit["identical"], audit["rows"])


def upper_share(found: int, of: int) -> float:
    """Wilson's upper limit for a share of which a sample has `found` cases; exact for none."""
    if not found:
        return 1 - 0.05 ** (1 / of)
    share, z = found / of, _Z
    root = math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return min(1.0, (share + z * z / (2 * of) + z * root) / (1 + z * z / of))


def read_details(output: str) -> Details:
    """Read an output's files once, and a few of its rows' texts.

    Raises:
        ValueError: a folder that holds no results of ours.
    """
    store = Store(output)
    names = result_files(store)
    own = id_column(store, names)
    totals, rows, positions, layers, files = Totals(), Rows(), Positions(), Layers(), Files()
    error, extremes, errors = Error(), Extremes(own), ErrorRows(own)
    parts: list[Part] = [totals, rows, positions, layers, files, error, extremes, errors]
    gather(store, names, parts)
    listed = extremes.rows()
    texts = [row for rows_of_list in listed.values() for row in rows_of_list]
    add_texts(store, texts, kept_columns(store, names)[:_MOST_KEPT])
    settings = read_settings(store, names)
    commits = read_commits(store, files.by_name)
    report = totals.report(store)
    started = settings.run.get("started")
    return Details(
        report=report,
        speedup_error=error.value,
        rows=rows.sample.table,
        positions=positions,
        layers=layers,
        drafter_tokens=files.drafter_tokens(),
        course=timeline(commits, report.rows, started),
        extremes=listed,
        failures=errors.failures(),
        files={name: sums.rows for name, sums in files.by_name.items()},
        settings=settings,
        cost=_cost(settings),
        id_column=own,
    )


def read_settings(store: Store, names: Sequence[str]) -> Settings:
    """What the run has written about itself; the results' own fingerprint where it has not."""
    config: dict[str, Any] = {}
    versions: dict[str, str] = {}
    digest, run = "", {}
    if store.exists(RUN):
        said = json.loads(store.read(RUN))
        config, versions = flat(said.get("config", {})), said.get("versions", {})
        digest, run = said.get("fingerprint", ""), {"started": said.get("started")}
    else:
        with opened(store, names[0], ()) as file:
            metadata = file.schema_arrow.metadata or {}
        config = flat(json.loads(metadata.get(FINGERPRINT_KEY, b"{}")))
    if store.exists(MANIFEST):
        manifest = read_manifest(store.uri)
        versions = versions or manifest.get("versions", {})
        digest = digest or manifest["fingerprint"]
        # Another beginning: a later run is at work, or has died, and what this says is over.
        if run.get("started") in (None, manifest["run"].get("started")):
            run |= manifest["run"]
    return Settings(config, versions, digest, run)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _cost(settings: Settings) -> Cost | None:
    started, ended = settings.run.get("started"), settings.run.get("ended")
    # What was asked for, or else what there was.
    actors = settings.config.get("actors") or settings.run.get("config", {}).get("actors")
    if not (started and ended and actors):
        return None
    seconds = (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds()
    gpus = settings.config.get("gpus_per_actor")
    return Cost(max(seconds, 0.0), actors, gpus)
