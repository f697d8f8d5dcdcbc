"""What this process may use of its machine: a container may leave it less than there is."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Cores: those of its affinity, or as many as its quota pays for, where these are fewer."""
    there = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        there = len(os.sched_getaffinity(0))
    quota = cpu_quota()
    return there if quota is None else max(1, min(there, int(quota)))


def cpu_quota() -> float | None:
    """CPUs that a container grants; None where it sets no limit."""
    quota, _, period = container("cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def usable_memory() -> int:
    """Bytes of main memory, free or not."""
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = container("memory.max")
    return min(there, int(limit)) if limit.isdigit() else there


def container(name: str) -> str:
    """What a file of the control group says; "" where there is none."""
    try:
        return (_CGROUP / name).read_text().strip()
    except OSError:
        return ""
