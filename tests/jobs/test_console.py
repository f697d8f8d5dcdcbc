"""What a run shows while it works."""

from __future__ import annotations

import pytest

from jobs.console import Console, duration, printable, progress_line
from pipeline.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def decoding(done: int, seconds: float) -> Progress:
    return Progress(
        rows_total=100,
        rows_done=done,
        rows_error=2,
        seconds=seconds,
        tokens_per_second=12.34,
        mean_acceptance_length=2.5,
        speedup=1.25,
        actors=1,
        phase="decoding",
    )


def test_a_line_says_all_that_is_known() -> None:
    assert progress_line(decoding(40, 9), 75) == (
        "decoding 40/100 rows | 2 error rows | 12.3 tokens/s | 2.50 tokens per target pass | "
        "speedup 1.25 | 1 min 15 s left"
    )
    bare = Progress(rows_total=3, phase="decoding")
    assert progress_line(bare) == "decoding 0/3 rows | 0.0 tokens/s"
    assert progress_line(Progress()) == "checking the input"


def test_without_a_terminal_a_line_every_ten_seconds_and_at_every_phase(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    with Console(terminal=False, clock=clock) as console:
        console.update(Progress(phase="checking"))
        console.update(Progress(phase="starting"))
        for second in range(1, 31):
            clock.now = second
            console.update(decoding(second, second))
        assert console.last == decoding(30, 30)
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    done = [line.split(" rows")[0].split()[-1] for line in lines[2:]]
    assert done == ["1/100", "11/100", "21/100"]


def test_time_left_leaves_out_what_earlier_runs_did(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Console(terminal=False, clock=clock) as console:
        console.update(decoding(50, 20))
        clock.now = 10
        console.update(decoding(60, 30))
    first, second = capsys.readouterr().err.splitlines()
    assert "left" not in first
    # 10 rows in 10 s, so 40 s for 40 rows; with the 50 rows of earlier it would be 20 s.
    assert second.endswith("40 s left")


def test_a_terminal_gets_one_live_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Console(terminal=True) as console:
        console.update(decoding(40, 9))
        console.close()
        console.update(decoding(41, 9))
    assert "decoding 41/100" in capsys.readouterr().err


def test_control_characters_never_reach_the_terminal() -> None:
    assert printable("a\x1b[2J\x07\x9b1mb\nc\td\r") == "a [2J  1mb\nc\td "


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (3661, "1 h 1 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
