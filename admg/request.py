"""What goes into the engine and what comes out: values without tensors.

The engine knows a sequence by a handle of its own; `key` names the sequence's noise stream, so a
completion depends on model, prompt, parameters, seed and key alone (DESIGN §4.2).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from admg.config import SamplingParams
from admg.stats import SequenceStats

FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt: token ids, the law and the stops, and the key of its noise.

    With `draft` False nothing is drafted for it, whatever the engine's configuration; rounds of
    such sequences alone are plain decoding itself. With tokens in `forced` (as many as may be
    new) nothing is decoded at all: the completion is empty but for their `score`.
    """

    prompt_token_ids: list[int]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    key: str = ""
    draft: bool = True
    forced: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Score:
    """How well forced tokens follow a prompt, in logits.

    `deficit` is by how much the worst of them misses being the one drawn; `noise` is by how much
    the logits of it and of those before it differ between one pass over all and a pass for each.
    """

    deficit: float
    noise: float

    @property
    def near_tie(self) -> bool:
        """Whether rounding explains the tokens: two logits, each off by the noise."""
        return self.deficit <= 2 * self.noise


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished sequence.

    `token_ids` include the EOS or stop token that ended the sequence; `text` is given when the
    engine has a detokenizer, without that token and cut before a stop string. With
    `finish_reason` "error" both are empty, and `error_code` and `error_message` say why
    (`prompt_empty`, `prompt_too_long`, `bad_parameter`, `model_output_invalid`). `score` is that
    of a request's forced tokens.
    """

    handle: int
    key: str
    token_ids: list[int]
    finish_reason: FinishReason
    stats: SequenceStats
    text: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    score: Score | None = None

    @classmethod
    def failed(
        cls, handle: int, key: str, stats: SequenceStats, code: str, message: str
    ) -> Completion:
        """A sequence that ended in an error."""
        return cls(handle, key, [], "error", stats, error_code=code, error_message=message)
