"""The commands' --help inside Markdown files, between markers, written by a program.

    <!-- help: admg-batch run -->
    ...
    <!-- /help -->

`python tests/contracts/help_blocks.py --write` (or `make docs`) renews the blocks.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click
from click.testing import CliRunner

from jobs.cli import main

ROOT = Path(__file__).parents[2]
WIDTH = 96
BLOCK = re.compile(
    r"<!-- help: admg-batch ?(?P<path>[^\n]*?) -->\n(?P<body>.*?)<!-- /help -->", re.S
)


def documents() -> list[Path]:
    """The Markdown files of the repository that people read."""
    return [ROOT / "README.md", *sorted((ROOT / "deploy").rglob("*.md"))]


def help_text(path: str) -> str:
    """What `admg-batch PATH --help` prints at a fixed width."""
    result = CliRunner(env={"COLUMNS": str(WIDTH)}).invoke(
        main, [*path.split(), "--help"], prog_name="admg-batch", terminal_width=WIDTH
    )
    if result.exit_code:
        raise click.ClickException(f"admg-batch {path} --help: {result.output}")
    return result.output


def renewed(text: str) -> str:
    """A document with every block as it should be."""

    def block(found: re.Match[str]) -> str:
        path = found["path"].strip()
        command = " ".join(["admg-batch", *path.split()])
        return f"<!-- help: {command} -->\n```text\n{help_text(path)}```\n<!-- /help -->"

    return BLOCK.sub(block, text)


def write() -> list[Path]:
    """Renew all documents; those that changed."""
    changed = []
    for document in documents():
        old = document.read_text(encoding="utf-8")
        new = renewed(old)
        if new != old:
            document.write_text(new, encoding="utf-8")
            changed.append(document)
    return changed


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/contracts/help_blocks.py --write")
    for path in write():
        print(f"renewed {path.relative_to(ROOT)}")
