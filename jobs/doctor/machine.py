"""This machine: what is installed, processors, memory, devices, and how fast memory is read."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from jobs.doctor.finding import Finding, size
from pipeline.cache import cache_dir
from pipeline.machine import container, cpu_quota

_NEEDED = ("admg-batch", "ray", "torch", "transformers", "pyarrow", "safetensors")
# What `ray[default]` adds, without which no cluster can be spoken to.
_OF_CLUSTERS = ("aiohttp", "opentelemetry-sdk")
_ENOUGH_DISK = 5 * 2**30
_ENOUGH_SHARED = 2 * 2**30
# The probe's arrays, twice over.
_PROBE_BYTES = {"cpu": 2 * 2**30, "cuda": 16 * 2**30}


def versions() -> Finding:
    """What is installed."""
    found = {name: _version(name) for name in (*_NEEDED, *_OF_CLUSTERS)}
    missing = [name for name in _NEEDED if found[name] is None]
    facts = {"python": platform.python_version(), "executable": sys.executable, "packages": found}
    if missing:
        text = f"not installed: {', '.join(missing)}"
        return Finding("software", "problem", text, facts)
    known = ", ".join(f"{name} {found[name]}" for name in _NEEDED)
    text = f"Python {facts['python']}, {known}"
    if any(found[name] is None for name in _OF_CLUSTERS):
        text += "; without ray[default]: no submit, no status of clusters, no metrics"
        return Finding("software", "note", text, facts)
    return Finding("software", "ok", text, facts)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def processors() -> Finding:
    """CPUs that this process may use."""
    cores, all_cores = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    share = cpu_quota()
    usable = min(cores, share or cores)
    facts = {"cpus": usable, "cpus_of_machine": all_cores, "load": os.getloadavg()[0]}
    text = f"{usable:g} of {all_cores} CPUs, load {facts['load']:.1f}"
    if facts["load"] > all_cores:
        return Finding("processors", "note", f"{text}: others are at work here", facts)
    return Finding("processors", "ok", text, facts)


def memory() -> Finding:
    """Main memory, the machine's and the container's."""
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page
    facts: dict[str, int | None] = {"total_bytes": total, "free_bytes": free, "limit_bytes": None}
    text = f"{size(free)} free of {size(total)}"
    limit, used = container("memory.max"), container("memory.current")
    if limit.isdigit() and used.isdigit() and int(limit) < total:
        left = max(0, int(limit) - int(used))
        facts |= {"limit_bytes": int(limit), "free_bytes": min(free, left)}
        text += f"; the container may use {size(int(limit))}, {size(left)} of it are left"
        if left < free:
            # The engine goes by the machine's free memory.
            hint = "on CPU give --kv-budget, a quarter of that or less"
            return Finding("memory", "note", f"{text}: {hint}", facts)
    return Finding("memory", "ok", text, facts)


def disks() -> Iterator[Finding]:
    """Where models are kept, where Ray keeps its files, and its shared memory."""
    wanted = {
        "model cache": (cache_dir(), _ENOUGH_DISK, "set ADMG_BATCH_CACHE to a folder with room"),
        "temporary files": (Path(tempfile.gettempdir()), _ENOUGH_DISK, "Ray writes there"),
        "shared memory": (Path("/dev/shm"), _ENOUGH_SHARED, "Ray's objects then lie on disk"),
    }
    for topic, (folder, enough, hint) in wanted.items():
        there = next((p for p in (folder, *folder.parents) if p.is_dir()), Path("/"))
        free, writable = shutil.disk_usage(there).free, os.access(there, os.W_OK)
        facts: dict[str, Any] = {"path": str(folder), "free_bytes": free, "writable": writable}
        text = f"{folder}: {size(free)} free"
        if not writable:
            yield Finding(topic, "problem", f"{folder} cannot be written: {hint}", facts)
        elif free < enough:
            yield Finding(topic, "note", f"{text}: {hint}", facts)
        else:
            yield Finding(topic, "ok", text, facts)


def devices() -> Finding:
    """GPUs that torch can use."""
    if not torch.cuda.is_available():
        built = torch.version.cuda
        facts: dict[str, Any] = {"gpus": [], "torch_cuda": built}
        text = "no GPU that torch can use" if built else "no GPU: this torch is built for CPUs"
        return Finding("devices", "note", text, facts)
    gpus: list[dict[str, Any]] = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        gpus.append({"name": name, "free_bytes": free, "total_bytes": total})
    told = ", ".join(f"{g['name']} ({size(g['free_bytes'])} free)" for g in gpus)
    return Finding("devices", "ok", told, {"gpus": gpus, "torch_cuda": torch.version.cuda})


def bandwidth(dtype: str) -> Finding:
    """How fast this machine reads memory and multiplies, by two small probes."""
    from jobs.bench.probe import peaks

    topic, needed = "speed", _PROBE_BYTES["cuda" if torch.cuda.is_available() else "cpu"]
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else _free()
    if free < needed:
        text = f"not measured: the probe wants {size(needed)}, and {size(free)} are free"
        return Finding(topic, "note", text)
    measured = peaks(dtype)
    gbs, gflops = float(measured["peak_gbs"]), float(measured["peak_gflops"])
    text = f"{gbs:.0f} GB/s of memory, {gflops:.0f} GFLOP/s in {dtype} ({measured['device']})"
    facts = {"gb_per_second": gbs, "gflops": gflops, "dtype": dtype}
    return Finding(topic, "ok", text, facts)


def _free() -> int:
    free = memory().facts["free_bytes"]
    return int(free)
