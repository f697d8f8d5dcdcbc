"""Prompt templates: text with `{column}` fields. Data, never evaluated.

Only plain `{name}` is replaced and `{{`, `}}` stand for braces; there are no attributes, indexes,
conversions or formats, so a template can only ever show what is in the row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template: literal texts and column names in turn (`literals` is one longer)."""

    literals: tuple[str, ...]
    fields: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Split a template.

        Raises:
            ValueError: a brace without its partner, an empty field, or no field at all.
        """
        literals, fields, done = [""], [], 0
        for piece in _PIECE.finditer(text):
            literals[-1] += text[done : piece.start()]
            done = piece.end()
            found, name = piece.group(0), piece.group(1)
            if found in ("{{", "}}"):
                literals[-1] += found[0]
            elif name is None:
                where = f"at character {piece.start() + 1}"
                raise ValueError(
                    f"the template has a single {found!r} {where}: write {found * 2!r} for a brace "
                    "or {column} for a field"
                )
            elif not name:
                raise ValueError(
                    f"the template has an empty field at character {piece.start() + 1}: "
                    "it must name a column, as in {text}"
                )
            else:
                fields.append(name)
                literals.append("")
        literals[-1] += text[done:]
        if not fields:
            raise ValueError(
                "the template has no {column} field: every row would get the same prompt"
            )
        return cls(tuple(literals), tuple(fields))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns named, each once, in their order."""
        return tuple(dict.fromkeys(self.fields))

    def fill(self, values: Mapping[str, str]) -> str:
        """The text with every field replaced; `values` has all `columns`."""
        parts = [self.literals[0]]
        for name, literal in zip(self.fields, self.literals[1:], strict=True):
            parts += (values[name], literal)
        return "".join(parts)
