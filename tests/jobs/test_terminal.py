"""What people want of their terminal: no colours, no frames, completion with TAB."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from jobs.terminal import can_move, terminal
from pipeline.storage import Store
from tests.pipeline.outputs import commit_rows

BIN = Path(sys.executable).parent
FRAMES = set("┏━┓┃┡┩│└─┘╭╮╰╯┌┐")


class Screen:
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_plain_output_has_no_frames(tmp_path: Path, admg_batch: Callable[..., Result]) -> None:
    store = Store(str(tmp_path / "out"))
    store.prepare()
    commit_rows(store, "a", "b")
    framed = admg_batch("report", tmp_path / "out")
    plain = admg_batch("--plain", "report", tmp_path / "out")
    assert (framed.exit_code, plain.exit_code) == (0, 0), plain.output
    assert FRAMES & set(framed.stdout)
    assert not FRAMES & set(plain.stdout) and "2 ok, 0 error" in plain.stdout


@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_no_color_is_heeded(
    variables: dict[str, str],
    coloured: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", **variables}.items():
        monkeypatch.setenv(name, value)
    terminal().print("x", style="red")
    assert ("\x1b[31m" in capsys.readouterr().out) == coloured


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert can_move(Screen())  # type: ignore[arg-type]
    monkeypatch.setenv("TERM", "dumb")
    assert not can_move(Screen())  # type: ignore[arg-type]


def completed(line: str) -> list[str]:
    """What bash offers at the end of a line, with the script that the command prints."""
    words = line.split(" ")
    quoted = " ".join(f"'{w}'" for w in words)
    script = (
        f'eval "$(admg-batch completion bash)"; COMP_WORDS=({quoted}); '
        f"COMP_CWORD={len(words) - 1}; _admg_batch_completion admg-batch 2>/dev/null; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script],
        env=os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("admg-batch re", ["report"]),
        ("admg-batch run --draft-w", ["--draft-weights"]),
        ("admg-batch run --drafter n", ["ngram", "none"]),
    ],
)
def test_bash_completes(line: str, offered: list[str]) -> None:
    assert completed(line) == offered


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_their_script(shell: str, admg_batch: Callable[..., Result]) -> None:
    script = admg_batch("completion", shell)
    assert script.exit_code == 0
    assert f"_ADMG_BATCH_COMPLETE={shell}_complete" in script.stdout
    assert admg_batch("completion", "tcsh").exit_code == 2


def test_options_that_take_a_place_complete_files() -> None:
    from click.shell_completion import ShellComplete

    from jobs.cli import main

    shell = ShellComplete(main, {}, "admg-batch", "_X")
    kinds = {
        name: [c.type for c in shell.get_completions(["run", name], "mo")]
        for name in ("--model", "--config", "--input", "--max-tokens")
    }
    assert kinds == {
        "--model": ["dir"],
        "--config": ["file"],
        "--input": ["file"],
        "--max-tokens": [],
    }
