"""The parent's side of a worker: start it, ask it, end it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

_GRACE_SECONDS = 5

# The package is found at the end of the path, so that what a peer has installed comes first; it is
# taken off again before the peer is imported, so that it sees no library of ours.
_START = """
import sys
sys.path.append({root!r})
import jobs.bench.worker as worker
for name in {modules!r}:
    __import__(name)
if {alone}:
    sys.path.remove({root!r})
worker.main()
"""


class WorkerError(RuntimeError):
    """A worker answered with an error, or died; the message says which and why."""


class Worker:
    """One child process with one system.

    It gets a session of its own, so that Ctrl-C reaches the parent alone and that everything it
    starts ends with it.
    """

    def __init__(self, name: str, *, threads: int, peer: str | None = None, module: str) -> None:
        self.name = name
        root = str(Path(__file__).resolve().parents[2])
        code = _START.format(root=root, modules=[module] if peer else [], alone=peer is not None)
        # Closed by `close`: it lives as long as the process.
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [peer or sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            env=os.environ | _environment(threads),
            start_new_session=True,
        )
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        self._stdin, self._stdout = stdin, stdout
        self._closed = False

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(at_once=kind is not None)

    def ask(self, do: str, **fields: Any) -> Any:
        """Send one request and wait for its answer.

        Raises:
            WorkerError: it failed, or the process is dead.
        """
        try:
            self._stdin.write(json.dumps({"do": do, **fields}) + "\n")
            self._stdin.flush()
            line = self._stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_SECONDS)
            raise WorkerError(f"{self.name}: its process ended ({self._last_words()})")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.name}: {answer['error']}")
        return answer["ok"]

    def close(self, at_once: bool = False) -> None:
        """End the process and everything that it started; closing twice is fine."""
        if self._closed:
            return
        self._closed = True
        with suppress(OSError):  # what it did not read any more
            self._stdin.close()
        if not at_once:
            with suppress(subprocess.TimeoutExpired):  # it is killed below, with its children
                self._process.wait(_GRACE_SECONDS)
        with suppress(ProcessLookupError):  # nobody is left
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._stdout.close()
        self._log.close()

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        return lines[-1] if lines else f"exit code {self._process.returncode}"


def _environment(threads: int) -> Mapping[str, str]:
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONUNBUFFERED": "1",
    }
