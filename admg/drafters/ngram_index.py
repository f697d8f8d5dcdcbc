"""Where the n-grams of one sequence stand, and copying from there."""

from __future__ import annotations

from dataclasses import dataclass, field

# Lengths of the suffix that is looked up, the longest first: longer matches are right more often.
LENGTHS = (5, 4, 3, 2)


@dataclass(slots=True)
class NgramIndex:
    """Where each n-gram of one sequence was last followed by something.

    `follows` [n] maps n tokens to the position of the token after their latest occurrence.
    """

    follows: dict[int, dict[tuple[int, ...], int]] = field(
        default_factory=lambda: {n: {} for n in LENGTHS}
    )
    known: int = 0

    def extend(self, tokens: list[int]) -> None:
        """Take in the tokens that were committed since the last call."""
        index_ngrams(self.follows, tokens, self.known)
        self.known = len(tokens)

    def match(self, tokens: list[int]) -> tuple[int, int] | None:
        """Position of what followed the longest known suffix, and that suffix's length."""
        for n in LENGTHS:
            at = self.follows[n].get(tuple(tokens[-n:]))
            if at is not None:
                return at, n
        return None


def copy_from(tokens: list[int], at: int, count: int) -> list[int]:
    """`count` tokens from position `at` on; past the end the copy goes on with itself."""
    copied: list[int] = []
    for i in range(at, at + count):
        copied.append(tokens[i] if i < len(tokens) else copied[i - len(tokens)])
    return copied


def index_ngrams(
    follows: dict[int, dict[tuple[int, ...], int]], tokens: list[int], first: int, start: int = 0
) -> None:
    """Note in `follows` what each token from position `first` on follows, none before `start`."""
    for at in range(first, len(tokens)):
        for n, places in follows.items():
            if at - n >= start:
                places[tuple(tokens[at - n : at])] = at
