"""The cores that this process may use."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """How many: those of its affinity, which a container may have narrowed; else the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
