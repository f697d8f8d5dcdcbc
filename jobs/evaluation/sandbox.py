"""Programs that a model wrote, run one by one in processes of their own, with limits.

It is executed code that nobody has read. What keeps it from the machine depends on the isolation:

| | namespaces | limits |
|---|---|---|
| processes, threads | none can be started | the same |
| memory, CPU time, size of each file | limited | the same |
| environment, descriptors | none but its own | the same |
| wall clock | killed, whatever it does | the same |
| network | a namespace without any | refused by a hook of the interpreter |
| files | sees Python, libraries, 16 MiB of its own memory | writing refused by that hook |
| number of files | by those 16 MiB | by no limit, should the hook be got round |
| other processes | sees none | may see what its user sees |

`namespaces` needs Linux 5.12 and either root or user namespaces. A hook of the interpreter can be
got round by who means to: `limits` is for programs that go wrong, inside a container or a machine
that may be lost. Neither keeps a program from cheating its own tests, or from the kernel's faults.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Isolation = Literal["namespaces", "limits"]
Status = Literal["passed", "failed", "timed out", "memory"]

_LAUNCHER = Path(__file__).with_name("launcher.py")
# The launcher ends the program; this is for a launcher that hangs.
_GRACE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one program: wall-clock seconds (CPU seconds too, one more), and bytes."""

    seconds: float = 5.0
    memory: int = 512 * 2**20
    file_size: int = 2**20


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended: `passed` only where it ran to its end without an exception."""

    status: Status
    error: str = ""


class SandboxUnavailable(ValueError):
    """This machine does not allow the isolation that was asked for."""


def run_program(source: str, isolation: Isolation, limits: Limits | None = None) -> Outcome:
    """Run a Python program that may only use the standard library.

    Raises:
        SandboxUnavailable: the isolation is not possible here.
    """
    limits = limits or Limits()
    root = tempfile.mkdtemp(prefix="admg-batch-sandbox-")
    order = {
        "source": source,
        "word": secrets.token_hex(16),
        "root": root,
        "isolation": isolation,
        "seconds": limits.seconds,
        "memory": limits.memory,
        "file_size": limits.file_size,
    }
    try:
        said = _launched(json.dumps(order), limits.seconds + _GRACE_SECONDS)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    try:
        result = json.loads(said)
    except ValueError:
        result = {"status": "unavailable", "error": said.strip().rpartition("\n")[2]}
    if result["status"] == "unavailable":
        raise _unavailable(isolation, result["error"])
    return Outcome(result["status"], result["error"].encode(errors="replace").decode())


def check_isolation(isolation: Isolation) -> None:
    """Try a program that does nothing, before there are real ones.

    Raises:
        SandboxUnavailable: the isolation is not possible here.
    """
    if not sys.platform.startswith("linux"):
        raise SandboxUnavailable("model-written code is run on Linux only")
    outcome = run_program("", isolation, Limits(seconds=30))
    if outcome.status != "passed":
        reason = f"an empty program has {outcome.status} {outcome.error}".strip()
        raise _unavailable(isolation, reason)


def _unavailable(isolation: Isolation, reason: str) -> SandboxUnavailable:
    other = " (limits asks less of the machine, and keeps less from it)"
    return SandboxUnavailable(
        f"model-written code cannot be run here with the isolation {isolation!r}: {reason}"
        f"{other if isolation == 'namespaces' else ''}"
    )


def _launched(order: str, seconds: float) -> str:
    command = [sys.executable, "-I", "-S", str(_LAUNCHER)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, env={}, cwd="/", text=True
    ) as process:
        try:
            said, errors = process.communicate(order, timeout=seconds)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()  # it ends its program, then itself
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2)
            process.kill()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            return json.dumps({"status": "unavailable", "error": "the launcher does not end"})
    return said or errors
