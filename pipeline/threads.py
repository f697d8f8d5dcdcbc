"""Reading many files at once: what waits for storage waits beside others."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")

# More than the cores: most of the time goes into waiting.
_THREADS = min(16, 4 * (os.cpu_count() or 1))


def over_threads(function: Callable[[S], T], arguments: Iterable[S]) -> list[T]:
    """A function of every argument, several at a time, in their order."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, arguments))
