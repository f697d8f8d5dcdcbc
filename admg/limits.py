"""What an engine can take: the problem of a request that it cannot."""

from __future__ import annotations

from dataclasses import dataclass

from admg.request import Request


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one engine: `num_slots` of its arena, `max_model_len` tokens of a sequence."""

    vocab_size: int
    max_model_len: int
    num_slots: int
    detokenizes: bool

    def problem(self, request: Request) -> tuple[str, str] | None:
        """Why a request cannot run: error code and message; None if it can."""
        prompt, new = len(request.prompt_token_ids), request.sampling.max_tokens
        if not prompt:
            return "prompt_empty", "the prompt has no tokens"
        vocab = self.vocab_size
        if not all(0 <= t < vocab for t in request.prompt_token_ids):
            return "bad_parameter", f"a prompt token id lies outside the vocabulary of {vocab}"
        if not all(0 <= t < vocab for t in request.sampling.stop_token_ids):
            return "bad_parameter", f"a stop token id lies outside the vocabulary of {vocab}"
        if len(request.forced) > new or not all(0 <= t < vocab for t in request.forced):
            return "bad_parameter", f"forced tokens are not up to {new} of a vocabulary of {vocab}"
        if request.sampling.stop and not self.detokenizes:
            return "bad_parameter", "stop strings need an engine with a detokenizer"
        both = f"{prompt} prompt tokens and {new} new ones exceed"
        if prompt + new > self.max_model_len:
            return "prompt_too_long", f"{both} the longest sequence, {self.max_model_len} tokens"
        if prompt + new > self.num_slots:
            return "prompt_too_long", f"{both} the KV budget of {self.num_slots} tokens"
        return None
