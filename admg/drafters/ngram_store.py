"""What finished sequences said, to look up in: jobs repeat themselves from row to row.

Bounded: two generations of completions, of which the older one is forgotten when the younger one is
full. What is found depends on which rows an engine has finished, so drafts do (their statistics
too); under shared-noise verification completions do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from admg.drafters.ngram_index import index_ngrams

# Lengths of the suffix that is looked up, the longest first. Two tokens stand everywhere.
LENGTHS = (5, 4, 3)
# Tokens of the prompt's end that are kept: they lead to how completions begin.
LEAD = LENGTHS[0]
_END = -1


@dataclass(slots=True)
class _Generation:
    """Texts one after another, `_END` after each; `follows` [n] as in `NgramIndex`."""

    tokens: list[int] = field(default_factory=list)
    follows: dict[int, dict[tuple[int, ...], int]] = field(
        default_factory=lambda: {n: {} for n in LENGTHS}
    )

    def add(self, text: Sequence[int]) -> None:
        start = len(self.tokens)
        self.tokens.extend(text)
        index_ngrams(self.follows, self.tokens, start, start)
        self.tokens.append(_END)


@dataclass(frozen=True, slots=True)
class Found:
    """A place in the store: what follows it, and the length of the suffix that led there."""

    tokens: list[int]
    at: int
    matched: int

    def copy(self, count: int) -> list[int]:
        """Up to `count` tokens from there on, no further than their text goes."""
        copied = self.tokens[self.at : self.at + count]
        return copied[: copied.index(_END)] if _END in copied else copied


class NgramStore:
    """The latest completions of one engine, `capacity` tokens at most (about 0.5 KB each)."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._young, self._old = _Generation(), _Generation()

    def __len__(self) -> int:
        return len(self._young.tokens) + len(self._old.tokens)

    def add(self, prompt: Sequence[int], completion: Sequence[int]) -> None:
        """Take a finished sequence in."""
        text = [*prompt[-LEAD:], *completion][: self._capacity // 2 - 1]
        if len(self._young.tokens) + len(text) + 1 > self._capacity // 2:
            self._old, self._young = self._young, _Generation()
        self._young.add(text)

    def match(self, tokens: Sequence[int]) -> Found | None:
        """What followed the longest known suffix the last time that it was said."""
        for n in LENGTHS:
            suffix = tuple(tokens[-n:])
            for generation in (self._young, self._old):
                at = generation.follows[n].get(suffix)
                if at is not None:
                    return Found(generation.tokens, at, n)
        return None
