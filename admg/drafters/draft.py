"""What the drafters of one round propose."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True)
class Draft:
    """Draft tokens per sequence of the round (possibly none), where they came from, their laws.

    `sources` [i] lists (drafter, number of tokens) in the order of the tokens. `laws` [i][j] [V]
    is the law that token j of sequence i was drawn from, None for a token that was certain; only
    kept when verification by rejection asks for it.
    """

    tokens: list[list[int]]
    sources: list[list[tuple[str, int]]]
    laws: list[list[Tensor | None]]

    @classmethod
    def empty(cls, count: int) -> Draft:
        """No draft for any of `count` sequences: plain decoding."""
        return cls(
            [[] for _ in range(count)], [[] for _ in range(count)], [[] for _ in range(count)]
        )

    def add(self, i: int, tokens: Seq[int], source: str) -> None:
        """Append tokens to the draft of sequence i."""
        self.tokens[i].extend(tokens)
        before = self.sources[i][-1] if self.sources[i] else None
        if before is not None and before[0] == source:
            self.sources[i][-1] = (source, before[1] + len(tokens))
        elif tokens:
            self.sources[i].append((source, len(tokens)))

    def part(self, rows: Seq[int]) -> Draft:
        """Of some of the sequences; what is added there is added here."""
        return Draft(
            [self.tokens[i] for i in rows],
            [self.sources[i] for i in rows],
            [self.laws[i] for i in rows],
        )

    def drafted(self, i: int, source: str) -> int:
        """How many tokens of sequence i came from one drafter."""
        return sum(count for name, count in self.sources[i] if name == source)
