"""The record of a finished output: `_admg/manifest.json`, `_admg/run.json` and `_SUCCESS`."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from typing import Any

from pipeline.config import RunConfig
from pipeline.fingerprint import Fingerprint
from pipeline.ledger import Ledger
from pipeline.redaction import redacted, redacted_values
from pipeline.storage import STATE, Store
from pipeline.summary import Summary

MANIFEST = f"{STATE}/manifest.json"
RUN = f"{STATE}/run.json"
SUCCESS = "_SUCCESS"
ORDER = "statistics_depend_on_order"
_log = logging.getLogger(__name__)
_FORMAT = 1
# What is read of a manifest, here and by reports.
_SHAPE = {
    "fingerprint": str,
    "files": list,
    "totals": dict,
    "errors_by_code": dict,
    "statistics": dict,
    "run": dict,
}
_PACKAGES = ("admg-batch", "ray", "pyarrow", "torch", "transformers")


def read_manifest(output: str) -> dict[str, Any]:
    """The manifest of an output.

    Raises:
        ValueError: there is none, for the run has not finished or it is no output of ours; or it
            is not what a run has written.
    """
    store = Store(output)
    if not store.exists(MANIFEST):
        raise ValueError(f"output is {output!r}: it must be a finished run's, with a {MANIFEST}")
    try:
        manifest = json.loads(store.read(MANIFEST))
    except ValueError:
        manifest = None
    if not _is_manifest(manifest):
        raise ValueError(
            f"output is {output!r}: its {MANIFEST} was changed by somebody else, for it is not "
            "what a run writes: delete it, the next run writes it again"
        )
    return dict(manifest)


def _is_manifest(found: Any) -> bool:
    """Whether it has what is read of it, of the right kinds."""
    if not isinstance(found, dict):
        return False
    if not all(isinstance(found.get(name), kind) for name, kind in _SHAPE.items()):
        return False
    files = [file for file in found["files"] if isinstance(file, dict)]
    good = [f for f in files if isinstance(f.get("name"), str) and isinstance(f.get("rows"), int)]
    return len(good) == len(found["files"])


def known_sizes(store: Store) -> dict[str, int]:
    """What the rows of files take in memory, by name, as the last finished run has found."""
    if not store.exists(MANIFEST):
        return {}
    files = read_manifest(store.uri)["files"]
    return {f["name"]: f["bytes"] for f in files if isinstance(f.get("bytes"), int)}


def warn_of_lost_files(store: Store, ledger: Ledger) -> None:
    """Say so where files are gone that an earlier run has finished with; their rows come again."""
    if not store.exists(MANIFEST):
        return
    there = {file.name for file in ledger.files}
    lost = [f["name"] for f in read_manifest(store.uri)["files"] if f["name"] not in there]
    if lost:
        _log.warning(
            "output is %r: %d files that its manifest names are gone, %s for one; rows that no "
            "other file holds are decoded again",
            redacted(store.uri),
            len(lost),
            lost[0],
        )


def depended_on_order(store: Store) -> bool:
    """Whether the rows that are there may have statistics that other rows or the clock moved."""
    if not store.exists(RUN):
        return False
    try:
        found = json.loads(store.read(RUN))
    except ValueError:
        found = None
    # What is not ours any more, the next run writes again.
    return not isinstance(found, dict) or bool(found.get(ORDER, True))


def write_run(
    store: Store, config: RunConfig, fingerprint: Fingerprint, started: str, *, order: bool
) -> None:
    """Leave the exact configuration that runs beside the results, before any of them.

    Args:
        order: whether the statistics of rows, earlier ones included, depend on their order.
    """
    _write_json(
        store,
        RUN,
        {
            "config": asdict(config) | _places(config),
            # Of drafting; completions never depend on other rows (shared noise).
            ORDER: order,
            "fingerprint": fingerprint.digest,
            "started": started,
            "versions": versions(),
        },
    )


def _places(config: RunConfig) -> dict[str, Any]:
    """What may be URIs, without their credentials; nothing else of the configuration is touched."""
    places = {"input": config.input, "output": config.output, "model": config.model}
    return {name: redacted_values(value) for name, value in places.items()}


def write_manifest(
    store: Store,
    fingerprint: Fingerprint,
    ledger: Ledger,
    summary: Summary,
    run: Mapping[str, Any],
) -> None:
    """Describe the whole output; `run` is what the run that ends now says about itself."""
    _write_json(
        store,
        MANIFEST,
        {
            "format": _FORMAT,
            "fingerprint": fingerprint.digest,
            "fields": dict(fingerprint.fields),
            "files": [{"name": f.name, "rows": f.rows, "bytes": f.bytes} for f in ledger.files],
            "totals": summary.totals(),
            "errors_by_code": summary.errors_by_code,
            "statistics": summary.statistics(),
            "audit": summary.audit.to_dict(),
            "run": redacted_values(dict(run)),
            "versions": versions(),
        },
    )


def versions() -> dict[str, str]:
    """Versions of what the results depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _write_json(store: Store, name: str, content: Mapping[str, Any]) -> None:
    store.write(name, json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")
