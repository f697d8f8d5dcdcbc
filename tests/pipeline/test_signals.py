"""A run that is told to stop cleans up once, however often it is told."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pipeline.signals import Terminated, sigterm_interrupts

TERM, INT = signal.SIGTERM, signal.SIGINT


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """As in a terminal, also where the tests run in the background."""
    before = signal.signal(INT, signal.default_int_handler)
    yield
    signal.signal(INT, before)


@pytest.mark.parametrize("more", [(), (INT,), (TERM,), (TERM, TERM, INT, TERM)])
@pytest.mark.parametrize(("first", "kind"), [(INT, KeyboardInterrupt), (TERM, Terminated)])
def test_further_signals_do_not_break_the_cleaning_up(
    first: signal.Signals, kind: type[KeyboardInterrupt], more: tuple[signal.Signals, ...]
) -> None:
    before = [signal.getsignal(which) for which in (TERM, INT)]
    cleaned = False
    with pytest.raises(KeyboardInterrupt) as caught, sigterm_interrupts():
        try:
            signal.raise_signal(first)
        finally:
            for again in more:
                signal.raise_signal(again)
            cleaned = True
    assert caught.type is kind and cleaned
    assert [signal.getsignal(which) for which in (TERM, INT)] == before


STUBBORN = """
import signal
from pipeline.signals import sigterm_interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)
with sigterm_interrupts():
    try:
        signal.raise_signal(signal.{first})
    finally:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        print("still here", flush=True)
        signal.raise_signal(signal.SIGINT)
        print("and here")
"""


@pytest.mark.parametrize(("first", "lines"), [("SIGINT", 0), ("SIGTERM", 1)])
def test_a_third_ctrl_c_ends_the_process_and_the_second_says_so(first: str, lines: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STUBBORN.format(first=first)], capture_output=True, text=True
    )
    assert done.returncode == -INT
    assert done.stdout == "still here\n" * lines
    assert "Ctrl-C once more ends this at once" in done.stderr


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    signal.signal(INT, signal.SIG_IGN)
    with sigterm_interrupts():
        signal.raise_signal(INT)
