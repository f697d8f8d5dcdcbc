"""What the documents say about commands is true: help blocks, examples, make targets."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from jobs.cli import main
from jobs.options import ExampleCommand, ExampleGroup
from tests.contracts.help_blocks import BLOCK, documents, help_text, renewed

ROOT = Path(__file__).parents[2]
# Blocks under this mark are not only parsed but executed, in an empty folder.
RUN = re.compile(r"<!-- run -->\n```(?:bash|sh|shell|console)\n(.*?)^```", re.S | re.M)
FENCE = re.compile(r"^```(?:bash|sh|shell|console)\n(.*?)^```", re.S | re.M)


def commands_in(markdown: str) -> list[str]:
    """The command lines of a document's shell blocks, continuation lines joined."""
    found = []
    for block in FENCE.findall(markdown):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.strip().removeprefix("$ ")
            if line and not line.startswith("#"):
                found.append(line)
    return found


def check_command(line: str) -> None:
    """Raise where `make` or `admg-batch` would refuse this line for its words."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words.pop(0)
    if words and words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        unknown = [w for w in words[1:] if "=" not in w and w not in targets]
        assert not unknown, f"make has no target {unknown} in: {line}"
    # The last word that names the program: "ray job submit -- admg-batch run ..." too.
    starts = [i for i, w in enumerate(words) if Path(w).name == "admg-batch"]
    if starts:
        own = words[starts[-1] + 1 :]
        ends = [i for i, w in enumerate(own) if re.fullmatch(r"\d?>>?|\|\|?|&&?|;", w)]
        parse(main, own[: ends[0]] if ends else own, "admg-batch")


def parse(command: click.Command, words: list[str], name: str) -> None:
    """Let click parse the words without running anything."""
    if words and words[-1] in ("--help", "-h", "--version"):
        words = words[:-1]
        for word in words:
            assert isinstance(command, click.Group) and word in command.commands
            command = command.commands[word]
        return
    context = command.make_context(name, list(words))
    if isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        child, below, left = command.resolve_command(context, rest)
        assert child is not None and below is not None
        parse(below, left, child)


def blocks_to_run() -> list[str]:
    return [block for d in documents() for block in RUN.findall(d.read_text(encoding="utf-8"))]


def all_commands(
    command: click.Command = main, path: str = ""
) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from all_commands(below, f"{path} {name}".strip())


@pytest.mark.parametrize("document", documents(), ids=lambda p: p.name)
def test_help_blocks_are_what_the_commands_say(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert text == renewed(text), "make docs renews the blocks"


@pytest.mark.parametrize("document", documents(), ids=lambda p: p.name)
def test_commands_in_documents_are_real(document: Path) -> None:
    for line in commands_in(document.read_text(encoding="utf-8")):
        check_command(line)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("block", blocks_to_run(), ids=lambda block: block.split("\n")[0][:60])
def test_marked_blocks_run(block: str, tmp_path: Path) -> None:
    script = re.sub(r"^\$ ", "", block, flags=re.M)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("path", "command"), list(all_commands()), ids=lambda v: str(v) or "main")
def test_every_command_has_help_with_a_runnable_example(path: str, command: click.Command) -> None:
    text = help_text(path)
    assert "Usage: admg-batch" in text
    assert isinstance(command, ExampleCommand | ExampleGroup)
    for line in command.example.strip().splitlines():
        assert f"  {line}" in text
    commands = commands_in(f"```bash\n{command.example.strip()}\n```\n")
    assert any(f"admg-batch {path}" in line for line in commands)
    for line in commands:
        check_command(line)


def test_drift_is_found() -> None:
    block = "a\n<!-- help: admg-batch report -->\nold\n<!-- /help -->\nb\n"
    new = renewed(block)
    assert BLOCK.search(block) and new != block
    assert "--json" in new and new.startswith("a\n") and new.endswith("b\n")
    assert renewed(new) == new


@pytest.mark.parametrize(
    "line",
    [
        "make nothing",
        "admg-batch rum --input a",
        "admg-batch run --inptu a --output b",
        "X=1 admg-batch run --max-tokens many",
        "ray job submit -- admg-batch report",
    ],
)
def test_commands_that_are_not_real_are_found(line: str) -> None:
    assert commands_in(f"```bash\n$ {line}\n```\n") == [line]
    with pytest.raises((AssertionError, click.UsageError)):
        check_command(line)
