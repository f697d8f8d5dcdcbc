"""What a run shows while it works."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console as Screen

from jobs.console import Console, duration, printable, progress_line
from jobs.live import drawn
from pipeline.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def decoding(done: int, seconds: float, **more: Any) -> Progress:
    return Progress(
        rows_total=100,
        rows_done=done,
        rows_error=2,
        seconds=seconds,
        tokens_per_second=12.34,
        mean_acceptance_length=2.5,
        speedup=1.25,
        actors=2,
        actors_alive=2,
        errors_by_code={"deadline": 1},
        phase="decoding",
        **more,
    )


def test_a_line_says_all_that_is_known() -> None:
    assert progress_line(decoding(40, 9, eta_seconds=75, prompt_tokens_per_second=80.0)) == (
        "decoding 40/100 rows | error rows: 2 (1 deadline) | 12.3 tokens/s | 80.0 prompt tokens/s "
        "| 2.50 tokens per target pass | speedup 1.25 | 1 min 15 s left"
    )
    lost = replace(decoding(40, 9), actors_alive=1, rows_error=0)
    assert progress_line(lost).endswith(" | 1 of 2 actors alive")
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


def view_of(progress: Progress, width: int = 100) -> str:
    """The live view's text, as a terminal without colours has it."""
    screen = Screen(file=io.StringIO(), width=width, color_system=None)
    screen.print(drawn(progress))
    return str(screen.file.getvalue())  # type: ignore[attr-defined]


def test_the_live_view_says_all_that_is_known() -> None:
    text = view_of(decoding(40, 9, eta_seconds=75, prompt_tokens_per_second=80.0))
    assert [" ".join(re.sub("[━╸]", "", line).split()) for line in text.splitlines()] == [
        "decoding 40/100 rows 9 s 1 min 15 s left",
        "tokens/s 12.3 in completions, 80.0 in prompts",
        "acceptance 2.50 tokens per target pass",
        "speedup 1.25 (estimated)",
        "actors 2 alive of 2",
        "error rows 2 (1 deadline)",
    ]
    assert view_of(Progress()).split()[0] == "checking"
    assert max(map(len, view_of(decoding(40, 9), width=40).splitlines())) <= 40


def test_a_terminal_gets_the_live_view_and_lines_once_it_is_closed(
    capsys: pytest.CaptureFixture[str],
) -> None:
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
