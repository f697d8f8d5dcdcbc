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

_KNOWN = hasattr(os, "SCHED_BATCH")


@contextmanager
def giving_way() -> Iterator[None]:
    """This thread, and what it starts, under the batch policy."""
    changed = _KNOWN and _change(os.SCHED_OTHER, os.SCHED_BATCH)
    try:
        yield
    finally:
        if changed:
            _change(os.SCHED_BATCH, os.SCHED_OTHER)


def take_precedence() -> None:
    """This thread, and what it starts, under the usual policy again."""
    if _KNOWN:
        _change(os.SCHED_BATCH, os.SCHED_OTHER)


def _change(old: int, new: int) -> bool:
    """Put one policy in the other's place; False where there is a third one, or none may."""
    try:
        if os.sched_getscheduler(0) != old:
            return False
        os.sched_setscheduler(0, new, os.sched_param(0))
    except OSError:  # a sandbox that forbids it; it is only about speed
        return False
    return True
