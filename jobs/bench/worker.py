"""The child process of one system: JSON lines in on stdin, JSON lines out.

    {"do": "load", "backend": "module:class", "system": {...}, "model": ..., "dtype": ..., ...}
    {"do": "prepare", "cell": {...}}   make the engine for a cell and warm it up, untimed
    {"do": "run"}                      one timed run; answers the fields of `measure.Outcome`
    {"do": "probe"}                    the machine's peaks

Every line is answered by one line: {"ok": {...}} or {"error": "..."}. Libraries print what they
like: file descriptor 1 is pointed at stderr, and the answers go out through a copy of it.

Only the standard library is used here, and `jobs.bench.{backend}` when it is asked for, since
this file also runs in the virtual environment of a peer.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
from typing import IO, Any

from jobs.bench.resident import peak_resident_bytes


def main() -> None:
    """Answer requests until stdin ends, or the parent does."""
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, answers)


def _leave_with(parent: int) -> None:
    """End this process when its parent is gone: in the middle of a cell nobody reads stdin."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def serve(requests: IO[str], answers: IO[str]) -> None:
    """Answer every line of `requests` with one line."""
    backend: Any = None
    for line in requests:
        try:
            request = json.loads(line)
            if request["do"] == "load":
                backend = _backend(request["backend"])
            answer = {"ok": _answer(backend, request)}
        except Exception as error:  # whatever a peer raises is reported, and the parent decides
            import traceback

            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _answer(backend: Any, request: dict[str, Any]) -> Any:
    if request["do"] == "load":
        return backend.load(request)
    if request["do"] == "prepare":
        return backend.prepare(request["cell"])
    if request["do"] == "run":
        return {**backend.run(), "peak_resident_bytes": peak_resident_bytes()}
    if request["do"] == "probe":
        from jobs.bench.probe import peaks

        return peaks(request["dtype"])
    raise ValueError(f"unknown request {request['do']!r}")


def _backend(name: str) -> Any:
    module, _, cls = name.partition(":")
    return getattr(importlib.import_module(module), cls)()
