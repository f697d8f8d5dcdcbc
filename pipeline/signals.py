"""SIGTERM as an interruption: what Ctrl-C does, for those that cannot press it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_CTRL_C = 3
_STOPPING = b"\nStopping; Ctrl-C once more ends this at once, with nothing cleaned up.\n"


class Terminated(KeyboardInterrupt):
    """SIGTERM came: `ray job stop`, a scheduler, a machine that goes down."""


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """While inside, the first SIGTERM raises `Terminated` in the main thread, or the first Ctrl-C
    `KeyboardInterrupt`, and the next ones nothing.

    Those who stop a process often repeat themselves; a second signal must not break the cleaning
    up that the first one has begun. Only a third Ctrl-C ends the process, at once; the second one
    says so. A Ctrl-C that is ignored, as in the background of a shell, stays so. Outside of the
    main thread nothing changes: Python has no handlers there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    came: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) == 1:
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if number == signal.SIGINT and came.count(number) == _CTRL_C - 1:
            with suppress(OSError):
                os.write(2, _STOPPING)  # a stream may be amid writing, and takes no second writer
        elif number == signal.SIGINT and came.count(number) == _CTRL_C:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    before = {which: signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)}
    for which, handler in before.items():
        if which == signal.SIGTERM or handler != signal.SIG_IGN:
            signal.signal(which, interrupt)
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
