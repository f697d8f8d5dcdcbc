"""Runs in processes of their own, which tests may kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[3]


@contextmanager
def program(code: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A Python program in a session of its own, all of which ends here."""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        yield process
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            assert process.poll() is not None
        process.communicate()


def wait_for_files(output: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Return when so many files are committed, or the process has ended."""
    while len(list(output.glob("*.parquet"))) < count and process.poll() is None:
        time.sleep(0.05)
