"""The record of a run: every finished cell, written at once, so that a rerun goes on from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.whole_file import write_whole

NAME = "paper.json"
FORMAT = 2
# The controller chooses by measured time.
_BY_THE_CLOCK = ("timed/", "main/auto")


class Record:
    """Cells by their names, and what they belong to.

    `about` holds all that a cell's numbers depend on (model, prompts, sizes, seeds); a record of
    something else is not gone on with. `run` says when, where and by which command.
    """

    def __init__(self, about: Mapping[str, Any], run: Mapping[str, Any]) -> None:
        self.about = dict(about)
        self.run = dict(run)
        self.cells: dict[str, Any] = {}

    @classmethod
    def read(cls, folder: Path) -> Record | None:
        """The record in a folder; None where there is none.

        Raises:
            ValueError: the file is not such a record.
        """
        file = folder / NAME
        if not file.is_file():
            return None
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            found = cls(content["about"], content["run"])
            found.cells = dict(content["cells"])
            known = content["format"] == FORMAT
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is not a record of bench paper: move it away") from error
        if not known:
            raise ValueError(f"{file} is of another version: move it away")
        return found

    def check_same(self, about: Mapping[str, Any], place: Path) -> None:
        """Refuse to go on with cells of another run.

        Raises:
            ValueError: naming the first thing that differs.
        """
        theirs = json.loads(json.dumps(about))
        for name in sorted({*self.about, *theirs}):
            mine, other = self.about.get(name), theirs.get(name)
            if mine != other:
                raise ValueError(
                    f"--output is {place}, which holds a run with {name} {_short(mine)} and not "
                    f"{_short(other)}: it must be another folder, or --restart given"
                )

    def move_to(self, machine: Mapping[str, Any]) -> list[str]:
        """Drop what was measured by the clock of another machine; the names of those cells."""
        here = json.loads(json.dumps(machine))
        if self.run["machine"] == here:
            return []
        self.run["machine"] = here
        self.run.pop("device", None)
        dropped = [name for name in self.cells if name.startswith(_BY_THE_CLOCK)]
        for name in dropped:
            del self.cells[name]
        return dropped

    def write(self, folder: Path) -> None:
        """Whole or not at all; a line for each cell."""
        folder.mkdir(parents=True, exist_ok=True)
        head = {"format": FORMAT, "about": self.about, "run": self.run}
        lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
        cells = [f"{json.dumps(name)}: {json.dumps(cell)}" for name, cell in self.cells.items()]
        inner = ",\n".join(cells)
        text = "{" + ",\n".join([*lines, f'"cells": {{\n{inner}\n}}']) + "}\n"
        write_whole(folder / NAME, text)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
