"""On a machine that does everything, what runs beside the engine gives way to it.

An engine on CPUs has a thread on every core, and all of them wait for the slowest at the end of
each operation. A dozen processes of Ray's that wake for a moment interrupt these threads hundreds
of times a second. Under Linux's batch policy they get the same share, but wait for the end of a
time slice to begin. It needs no rights, and is inherited by what is started under it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_KNOWN = hasattr(os, "sched_setscheduler") and hasattr(os, "SCHED_BATCH")


@contextmanager
def giving_way() -> Iterator[None]:
    """This thread, and what it starts, under the batch policy."""
    if not _KNOWN or os.sched_getscheduler(0) != os.SCHED_OTHER:
        yield
        return
    _set(os.SCHED_BATCH)
    try:
        yield
    finally:
        _set(os.SCHED_OTHER)


def take_precedence() -> None:
    """This thread, and what it starts, under the usual policy again."""
    if _KNOWN and os.sched_getscheduler(0) == os.SCHED_BATCH:
        _set(os.SCHED_OTHER)


def _set(policy: int) -> None:
    os.sched_setscheduler(0, policy, os.sched_param(0))
