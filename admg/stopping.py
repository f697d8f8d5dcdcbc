"""When a completion ends: EOS and stop tokens, stop strings, `max_tokens`."""

from __future__ import annotations

from collections.abc import Callable

from admg.request import FinishReason
from admg.sequence import Sequence

Detokenize = Callable[[list[int]], str]


def commit(
    sequence: Sequence, tokens: list[int], detokenize: Detokenize | None
) -> tuple[int, FinishReason | None]:
    """Append tokens one by one until the sequence ends.

    Returns:
        How many were appended, and the reason if the sequence has ended.
    """
    for count, token in enumerate(tokens, start=1):
        sequence.tokens.append(token)
        reason = _ended(sequence, token, detokenize)
        if reason is not None:
            return count, reason
    return len(tokens), None


def final_text(sequence: Sequence, detokenize: Detokenize) -> str:
    """The completion's text without the token or the string that ended it."""
    ids = sequence.completion
    if ids and ids[-1] in sequence.stops and _stops_allowed(sequence):
        ids = ids[:-1]
    text = detokenize(ids)
    if _stops_allowed(sequence):
        cuts = [text.find(stop) for stop in sequence.request.sampling.stop]
        text = text[: min((c for c in cuts if c >= 0), default=len(text))]
    return text


def _ended(sequence: Sequence, token: int, detokenize: Detokenize | None) -> FinishReason | None:
    if _stops_allowed(sequence):
        if token in sequence.stops:
            return "stop"
        stops = sequence.request.sampling.stop
        if stops and detokenize is not None:
            text = detokenize(sequence.completion)
            if any(stop in text for stop in stops):
                return "stop"
    return "length" if sequence.remaining == 0 else None


def _stops_allowed(sequence: Sequence) -> bool:
    return len(sequence.tokens) - sequence.prompt_length > sequence.request.sampling.min_tokens
