"""Documents in parts that fit a model, cut where sentences end. Nothing is lost or doubled."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Count = Callable[[Sequence[str]], Sequence[int]]
"""Tokens of each text."""

# A full stop with what closes after it and white space, or an ideographic one, or an empty line.
# Nothing is looked at twice: a document may well be a million dots.
_CLOSING = "\"'\u201d\u2019)\\]\u00bb\u300d\u300f\uff09"
_STOPS = ".!?\u2026"
_END = re.compile(
    rf"(?<![{_STOPS}])[{_STOPS}]++[{_CLOSING}]*+\s+"
    rf"|[\u3002\uff01\uff1f]++[{_CLOSING}]*+\s*+"
    r"|\n\s*\n\s*+"
)
# What a full stop behind does not end a sentence: titles, initials, shortened words.
_SHORT = re.compile(
    r"(?:\b(?:[A-Za-z]|Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|etc|cf|ca|No|Nr|Fig|Eq|Vol|pp|al|approx)"
    r"|\b(?:e\.g|i\.e|z\.B|d\.h|U\.S))\.\s+$"
)


def sentences(text: str) -> list[str]:
    """The sentences with the white space behind them; joined they are the text."""
    found: list[str] = []
    start = 0
    for end in _END.finditer(text):
        piece = text[start : end.end()]
        following = text[end.end() : end.end() + 1]
        if "\n\n" not in piece and (following.islower() or _SHORT.search(piece[-16:])):
            continue
        found.append(piece)
        start = end.end()
    if start < len(text):
        found.append(text[start:])
    return found


def parts(text: str, count: Count, budget: int) -> list[str]:
    """The text in as few parts of about the same size as fit the budget of tokens.

    Joined they are the text. A sentence that is too long is cut between words, a word between
    characters. Tokens are added up sentence by sentence, which is a little more than they are.

    Raises:
        ValueError: a budget below 1.
    """
    if budget < 1:
        raise ValueError(f"budget is {budget}: it must be at least 1")
    pieces = _small(sentences(text), count, budget)
    total = sum(size for _, size in pieces)
    share = total / max(1, -(-total // budget))
    made: list[str] = []
    size_of_last, before, index_of_last = 0, 0, -1
    for piece, size in pieces:
        # The part that the middle of this piece falls into, if all were of the same size.
        index = int((before + size / 2) // share) if share else 0
        if not made or index > index_of_last or size_of_last + size > budget:
            made.append("")
            size_of_last, index_of_last = 0, max(index, index_of_last)
        made[-1] += piece
        size_of_last += size
        before += size
    return made


def _small(pieces: Sequence[str], count: Count, budget: int) -> list[tuple[str, int]]:
    """The pieces with their tokens, each within the budget or a single character."""
    found: list[tuple[str, int]] = []
    sizes = count(pieces) if pieces else []
    for piece, size in zip(pieces, sizes, strict=True):
        if size <= budget or len(piece) == 1:
            found.append((piece, size))
        else:
            found += _small(_halves(piece), count, budget)
    return found


def _halves(text: str) -> list[str]:
    """Two pieces, cut behind the white space that is nearest to the middle, if there is any."""
    middle = len(text) // 2
    spaces = [m.end() for m in re.finditer(r"\s+", text) if m.end() < len(text)]
    cut = min(spaces, key=lambda place: abs(place - middle), default=middle)
    return [text[:cut], text[cut:]]
