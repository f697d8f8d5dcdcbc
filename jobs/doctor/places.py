"""What a run reaches out for: the cluster, and the places of its input and output."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

from pyarrow import fs

from jobs.doctor.finding import Finding
from pipeline.errors import StorageError
from pipeline.redaction import redacted
from pipeline.retry import Patience, one_line
from pipeline.storage import Store

_PATIENCE = Patience(10.0)
_FIRST_BYTES = 64 * 1024


def cluster(address: str | None) -> Finding:
    """Whether the cluster at this address answers, or that of the environment."""
    from jobs.failures import Failure
    from jobs.ray_jobs import RayJobs, has_address

    if not has_address(address):
        text = "none is named (--address, RAY_ADDRESS): run starts Ray on this machine"
        return Finding("cluster", "ok", text, {"address": None})
    try:
        start = time.perf_counter()
        jobs = RayJobs.connect(address)
        ours = jobs.ours()
        seconds = time.perf_counter() - start
    except (Failure, ValueError) as error:
        text = error.message if isinstance(error, Failure) else str(error)
        return Finding("cluster", "problem", redacted(text), {"address": redacted(address or "")})
    running = sum(not job.is_over for job in ours)
    facts = {"address": jobs.address, "seconds": seconds, "jobs": len(ours), "running": running}
    text = f"{jobs.address} answers, and knows {len(ours)} jobs of ours, {running} of them not over"
    return Finding("cluster", "ok", text, facts)


def path(given: str) -> Finding:
    """Whether a file, a folder or a URI can be read and written."""
    told = redacted(given)
    try:
        store = Store(given, patience=_PATIENCE)
        start = time.perf_counter()
        info = store.trying(
            f"looking for {told}", lambda: store.filesystem.get_file_info(store.root)
        )
        if info.type == fs.FileType.File:
            return _file(store, told)
        if info.type == fs.FileType.NotFound and store.renames:
            return _missing(store, told)
        names = store.names("")
        if names:
            _read_some(store, names[0])
        seconds = time.perf_counter() - start
    except (ValueError, OSError, StorageError) as error:
        text = f"{told} cannot be read: {redacted(one_line(error))}"
        return Finding("path", "problem", text, {"path": told, "readable": False})
    reason = _writing(store)
    facts = {
        "path": told,
        "readable": True,
        "writable": reason is None,
        "files": len(names),
        "seconds": seconds,
    }
    text = f"{told}: {len(names)} files, read in {1000 * seconds:.0f} ms"
    if reason is None:
        return Finding("path", "ok", f"{text}, and can be written", facts)
    return Finding("path", "note", f"{text}, but cannot be written: {redacted(reason)}", facts)


def _file(store: Store, told: str) -> Finding:
    with store.filesystem.open_input_file(store.root) as stream:
        stream.read(_FIRST_BYTES)
    facts = {"path": told, "readable": True, "writable": False, "files": 1}
    return Finding("path", "ok", f"{told}: a file that can be read", facts)


def _missing(store: Store, told: str) -> Finding:
    """A folder that is not there yet is right for an output, if it can be made."""
    facts = {"path": told, "readable": False, "writable": None, "files": 0}
    if store.filesystem.type_name != "local":
        return Finding("path", "note", f"{told} is not there yet", facts)
    parent = next(p for p in Path(store.root).parents if p.is_dir())
    facts["writable"] = os.access(parent, os.W_OK)
    if facts["writable"]:
        return Finding("path", "note", f"{told} is not there yet, and can be made", facts)
    text = f"{told} is not there, and {parent} cannot be written"
    return Finding("path", "problem", text, facts)


def _read_some(store: Store, name: str) -> None:
    with store.filesystem.open_input_file(store.path(name)) as stream:
        stream.read(_FIRST_BYTES)


def _writing(store: Store) -> str | None:
    """Why a small file cannot be written and removed again; None where it can."""
    name = store.path(f".admg-batch-doctor-{uuid.uuid4().hex[:12]}")
    try:
        with store.filesystem.open_output_stream(name) as stream:
            stream.write(b"doctor")
        store.filesystem.delete_file(name)
    except OSError as error:
        return one_line(error)
    return None
