"""The memory of a process and of those that it started. Standard library only: peers use it too."""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")


def peak_resident_bytes() -> int | None:
    """The sum of the highest resident sets of this process and its descendants; None if unknown."""
    parents: dict[int, int] = {}
    peaks: dict[int, int] = {}
    for status in _PROC.glob("[0-9]*/status"):
        try:
            lines = status.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:  # it has ended
            continue
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        if "VmHWM" in fields:
            pid = int(fields["Pid"])
            parents[pid] = int(fields["PPid"])
            peaks[pid] = int(fields["VmHWM"].split()[0]) * 1024
    family = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(peaks.get(pid, 0) for pid in family) or None
