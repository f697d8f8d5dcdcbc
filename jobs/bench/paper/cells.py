"""Cells: one drafter on some tasks under some laws, decoded together and kept under one name."""

from __future__ import annotations

from dataclasses import dataclass, fields
from fnmatch import fnmatch
from typing import Any

from admg.config import DraftConfig
from admg.draft_rules import DropRule


@dataclass(frozen=True, slots=True)
class Cell:
    """What is decoded under one name.

    `name` is `section/system`, with `@task` where the drafter was calibrated on that task. The
    first `prompts` of each task take part, with completions up to `tokens` (None: the task's own
    for drafters, or its whole texts).
    """

    name: str
    draft: DraftConfig
    tasks: tuple[str, ...]
    laws: tuple[str, ...]
    prompts: int
    tokens: int | None = None
    whole: bool = False

    @property
    def section(self) -> str:
        """The part of the record that it belongs to."""
        return self.name.partition("/")[0]

    def wanted(self, sections: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
        """Whether it was asked for."""
        return self.section in sections and any(fnmatch(self.name, p) for p in patterns)


def described(draft: DraftConfig) -> dict[str, Any]:
    """The fields of a draft configuration that are not its defaults, fit for JSON."""
    found: dict[str, Any] = {}
    usual = DraftConfig()
    for f in fields(draft):
        value = getattr(draft, f.name)
        if value == getattr(usual, f.name) and f.name != "drop":
            continue
        found[f.name] = _rule(value) if hasattr(value, "__dataclass_fields__") else value
    if not draft.self_drafts or draft.sets is not None:
        found.pop("drop", None)
    return found


def _rule(rule: Any) -> dict[str, Any]:
    usual = {f.name: f.default for f in fields(rule)}
    values = {f.name: getattr(rule, f.name) for f in fields(rule)}
    changed = {name: v for name, v in values.items() if v != usual[name]}
    named = {} if isinstance(rule, DropRule) else {"kind": type(rule).__name__}
    return named | {n: list(v) if isinstance(v, tuple) else v for n, v in changed.items()}
