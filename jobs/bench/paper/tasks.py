"""The three kinds of text of the comparison: prompts, stops, references and scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Score = Callable[[Sequence[str]], dict[str, list[float]]]


def no_scores(texts: Sequence[str]) -> dict[str, list[float]]:
    """Of a task without metrics."""
    return {}


@dataclass(frozen=True, slots=True)
class Task:
    """Prompts of one kind.

    `prompts` are token ids that every system decodes, `held_out` others for calibrating.
    `max_tokens` is the limit of plain decoding, `counted` that of drafters, which is as high or
    lower. `score` gives the `metrics` of completions of the first prompts, a value each.
    """

    name: str
    title: str
    source: str
    prompts: list[list[int]]
    held_out: list[list[int]]
    max_tokens: int
    counted: int
    stop: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    score: Score = no_scores

    def about(self) -> dict[str, Any]:
        """What the record keeps of it: source, lengths and a digest of prompts, but no text."""
        ids = json.dumps([self.prompts, self.held_out]).encode()
        return {
            "title": self.title,
            "source": self.source,
            "lengths": [len(p) for p in self.prompts],
            "held_out_lengths": [len(p) for p in self.held_out],
            "prompts": hashlib.blake2b(ids, digest_size=8).hexdigest(),
            "max_tokens": self.max_tokens,
            "counted": self.counted,
            "stop": list(self.stop),
            "metrics": list(self.metrics),
        }
