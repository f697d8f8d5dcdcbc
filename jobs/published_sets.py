"""Sets of sub-layers that the authors of Draft & Verify published, as facts with their source.

Found by their search on 4 CNN/DailyMail and 4 XSum prompts; nothing here was measured by us.
Source: github.com/dilab-zju/self-speculative-decoding, skip_layers.json, commit
f69f2a750c83a34097e975afcef1d6a85229f58f (arXiv 2309.08168).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

PREFIX = "draft-verify:"
SOURCE = "github.com/dilab-zju/self-speculative-decoding, skip_layers.json (arXiv 2309.08168)"


@dataclass(frozen=True, slots=True)
class PublishedSet:
    """What a draft of this model leaves out."""

    model: str
    layers: int
    attention: tuple[int, ...]
    mlps: tuple[int, ...]


def _layers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split()))


SETS: dict[str, PublishedSet] = {
    s.model: s
    for s in (
        PublishedSet(
            "llama-2-13b",
            40,
            _layers("3 5 6 8 10 11 14 15 18 22 23 24 25 26 27 28 29 30 31 33 34 35 36 37"),
            _layers("6 9 10 11 15 24 25 27 28 35"),
        ),
        PublishedSet(
            "llama-2-13b-chat",
            40,
            _layers("7 8 9 10 11 14 15 18 22 23 24 26 27 28 29 30 31 32 33 34 35 36 37 38"),
            _layers("7 10 11 14 27 30 32 33 37 38"),
        ),
        PublishedSet(
            "codellama-13b",
            40,
            _layers("5 6 9 10 11 14 15 16 21 23 24 26 27 28 29 30 31 32 34 35 36 37"),
            _layers("10 11 12 14 15 25 26 27 30 32 33 34"),
        ),
    )
}


def published_set(name: str) -> PublishedSet:
    """The set of a plan's name, as draft-verify:llama-2-13b.

    Raises:
        ValueError: there is none of this name.
    """
    model = name.removeprefix(PREFIX)
    if model not in SETS:
        near = difflib.get_close_matches(model.lower(), SETS, 1, cutoff=0.4)
        hint = f" (did you mean {PREFIX}{near[0]}?)" if near else ""
        known = ", ".join(PREFIX + known for known in SETS)
        raise ValueError(f"plan is {name!r}: it must be a plan file or one of {known}{hint}")
    return SETS[model]
