"""What a measurement is worth nothing without: the machine, the versions, the commit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

_DISTRIBUTIONS = ("admg-batch", "torch", "transformers")


def machine(threads: int, dtype: str) -> dict[str, Any]:
    """The host, and how much of it is used; the workers add the device and its peaks."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gib": round(pages / 2**30, 1),
        "dtype": dtype,
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions(model: str) -> dict[str, str]:
    """Of the interpreter, the libraries and the model's folder (peers add their own)."""
    found = {"python": platform.python_version(), "model": Path(model).name}
    return found | {name: _version(name) for name in _DISTRIBUTIONS}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        return "not installed"


def commit() -> str | None:
    """The commit of this checkout, marked where files differ from it; None outside of one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None
