"""One thing that was looked at, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`text` is for people, `facts` for programs. A "problem" stops a run, a "note" may matter."""

    topic: str
    state: State
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The values by name, fit for JSON."""
        return {"topic": self.topic, "state": self.state, "text": self.text, **self.facts}


def size(count: float) -> str:
    """Bytes as people read them: 3.5 GiB, 640 MiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
