"""An engine that answers at once, so that whatever takes time is the data plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from admg.request import Completion, Request
from admg.stats import EngineCounters, SequenceStats

NULL_TOKENS = 8
NULL_BATCH = 256
_TOKEN_IDS = [65] * NULL_TOKENS
_TEXT = "A" * NULL_TOKENS


class NullTokenizer:
    """Every text is one token."""

    def encode(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        """The same token for every text."""
        return [[1] for _ in texts]

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The messages' contents."""
        return "".join(str(message["content"]) for message in messages)

    def decode(self, token_ids: Sequence[int], skip_special: bool) -> str:
        """The same text for all tokens."""
        return _TEXT


class NullEngine:
    """Completes whatever it holds in its next step, with the statistics of plain decoding."""

    def __init__(self) -> None:
        self._held: list[Completion] = []
        self._counters = EngineCounters()
        self._next = 0

    @property
    def has_work(self) -> bool:
        """Whether something waits for its answer."""
        return bool(self._held)

    @property
    def counters(self) -> EngineCounters:
        """What it has done so far."""
        return replace(self._counters)

    def explain(self) -> None:
        """Nothing is chosen."""

    def submit(self, request: Request) -> int:
        """Have the answer ready."""
        self._next += 1
        self._held.append(completed(self._next, request.key, len(request.prompt_token_ids)))
        return self._next

    def step(self) -> list[Completion]:
        """All answers."""
        done, self._held = self._held, []
        self._counters.completion_tokens += NULL_TOKENS * len(done)
        return done


def completed(handle: int, key: str, prompt_tokens: int) -> Completion:
    """What the null engine answers."""
    stats = SequenceStats(
        prompt_tokens=prompt_tokens,
        completion_tokens=NULL_TOKENS,
        num_spec_steps=NULL_TOKENS - 1,
        mean_acceptance_length=1.0,
        acceptance_histogram=[NULL_TOKENS - 1],
    )
    return Completion(handle, key, _TOKEN_IDS, "length", stats, text=_TEXT)


@dataclass(frozen=True, slots=True)
class NullFactory:
    """Builds null engines."""

    def check(self) -> int | None:
        """No limit."""
        return None

    def identity(self) -> dict[str, str]:
        """Always the same."""
        return {"weights": "null"}

    def tokenizer(self) -> NullTokenizer:
        """The null tokenizer."""
        return NullTokenizer()

    def build(self, max_num_seqs: int | None = None) -> NullEngine:
        """A null engine."""
        return NullEngine()
