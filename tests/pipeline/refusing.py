"""Storage that refuses to open files for a while, and counts how often."""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import fs

from pipeline.retry import Patience
from pipeline.storage import Store

SLOW_DOWN = OSError("AWS Error SLOW_DOWN during GetObject operation: reduce your request rate")
STALE = OSError(errno.ESTALE, "Stale file handle")


class _Opens:
    """The file system below, but for the first `times` that each Parquet file is opened."""

    def __init__(self, below: fs.FileSystem, error: OSError, times: int, seen: Counter[str]):
        self._below, self._error, self._times, self._seen = below, error, times, seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._below, name)

    def open_input_file(self, path: str) -> pa.NativeFile:
        if path.endswith(".parquet"):
            self._seen[path] += 1
            if self._seen[path] <= self._times:
                raise self._error
        return self._below.open_input_file(path)


@dataclass(frozen=True)
class Refusing(Store):
    """A folder whose Parquet files cannot be opened at first."""

    error: OSError = SLOW_DOWN
    times: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "seen", Counter())

    @property
    def filesystem(self) -> Any:
        """The file system that refuses."""
        return _Opens(super().filesystem, self.error, self.times, self.seen)  # type: ignore[attr-defined]


def refusing(uri: str, error: OSError = SLOW_DOWN, times: int = 2, seconds: float = 60) -> Refusing:
    """The folder, with short pauses between attempts."""
    patience = Patience(seconds, first=0.001, longest=0.001)
    return Refusing(uri, patience=patience, error=error, times=times)
