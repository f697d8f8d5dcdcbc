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
    cut = _stop_string(sequence, text, detokenize)
    return text if cut is None else text[:cut]


def _ended(sequence: Sequence, token: int, detokenize: Detokenize | None) -> FinishReason | None:
    if _stops_allowed(sequence):
        if token in sequence.stops:
            return "stop"
        if detokenize is not None and sequence.request.sampling.stop:
            text = detokenize(sequence.completion)
            if _stop_string(sequence, text, detokenize) is not None:
                return "stop"
    return "length" if sequence.remaining == 0 else None


def _stop_string(sequence: Sequence, text: str, detokenize: Detokenize) -> int | None:
    """Where the first stop string begins that is not wholly within the first `min_tokens`."""
    params = sequence.request.sampling
    spared = len(detokenize(sequence.completion[: params.min_tokens])) if params.min_tokens else 0
    found = [text.find(stop, max(0, spared - len(stop) + 1)) for stop in params.stop]
    return min((at for at in found if at >= 0), default=None)


def _stops_allowed(sequence: Sequence) -> bool:
    return len(sequence.tokens) - sequence.prompt_length > sequence.request.sampling.min_tokens
