"""Draft & Verify's sets for the comparison: from a file, or searched for on held-out prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from jobs.bench.paper.tasks import Task


class Search(Protocol):
    """Finds one set of sub-layers for a kind of text."""

    def __call__(self, task: Task) -> Mapping[str, Any]:
        """`attention` and `mlps`, lists of layers, and how they were found."""
