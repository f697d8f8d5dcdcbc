"""What the drafter "auto" went by and chose, actor by actor: `_admg/choices.json` in the output.

Of the last run that has decoded anything. For people to read: no run depends on it, and one that
cannot write it says nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from admg.explanation import Explanation
from pipeline.errors import PipelineError
from pipeline.storage import STATE, Store

CHOICES = f"{STATE}/choices.json"


class Choices:
    """Those of a run that decodes; what an earlier run has left is not this one's, and goes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._told: dict[str, Explanation] = {}
        with suppress(PipelineError, OSError, pa.ArrowException):
            store.delete(CHOICES)

    def keep(self, told: Mapping[str, Explanation]) -> None:
        """What actors have told by their names, beside what others told before them."""
        self._told |= told
        if not self._told:
            return
        actors = [{"actor": name, **asdict(self._told[name])} for name in sorted(self._told)]
        content = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "actors": actors}
        with suppress(PipelineError, OSError, pa.ArrowException):
            self._store.write(CHOICES, json.dumps(content, indent=1).encode() + b"\n")


def read_choices(store: Store) -> list[dict[str, Any]]:
    """For each actor the fields of `admg.explanation.Explanation`; [] where there are none.

    Raises:
        ValueError: it is nothing that a run has written.
        StorageError: the storage cannot be reached.
    """
    try:
        actors = json.loads(store.read(CHOICES))["actors"]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        broken = f"{store.uri}: {CHOICES} was changed by somebody else: delete it"
        raise ValueError(broken) from error
    if not isinstance(actors, list) or not all(_is_whole(actor) for actor in actors):
        raise ValueError(f"{store.uri}: {CHOICES} was changed by somebody else: delete it")
    return actors


def _is_whole(actor: Any) -> bool:
    wanted = {"actor", "rounds", "costs", "lookup", "trust"}
    return isinstance(actor, dict) and wanted <= actor.keys()
