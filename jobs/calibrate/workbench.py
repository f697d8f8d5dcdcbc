"""A loaded model, and engines on it that decode a sample one way or another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from admg.checkpoint import load_dtype
from admg.config import DraftConfig, EngineConfig
from admg.engine import Engine
from admg.kv_arena import SLOT_GRAIN, bytes_per_slot
from admg.model import Transformer
from admg.request import Completion, Request

if TYPE_CHECKING:
    from admg.families import ModelConfig

PLAIN = DraftConfig(drafter="none")


@dataclass(frozen=True, slots=True)
class Decoded:
    """Completions in the order of their requests, and the wall seconds of all."""

    completions: list[Completion]
    seconds: float

    @property
    def tokens(self) -> list[list[int]]:
        """Token ids of each completion."""
        return [c.token_ids for c in self.completions]

    @property
    def passes(self) -> int:
        """Target passes, each of one sequence."""
        return sum(c.stats.num_spec_steps for c in self.completions)

    @property
    def tokens_per_pass(self) -> float:
        """Mean acceptance length over all passes."""
        accepted = sum(c.stats.num_accepted_draft_tokens for c in self.completions)
        return 1 + accepted / self.passes if self.passes else 1.0

    @property
    def draft_tokens(self) -> float:
        """Draft tokens of a pass."""
        drafted = sum(c.stats.num_draft_tokens for c in self.completions)
        return drafted / self.passes if self.passes else 0.0

    @property
    def acceptance_rate(self) -> float:
        """Accepted of the draft tokens."""
        accepted = sum(c.stats.num_accepted_draft_tokens for c in self.completions)
        drafted = sum(c.stats.num_draft_tokens for c in self.completions)
        return accepted / drafted if drafted else 0.0


class Workbench:
    """The model of a run, for as many engines as are wanted.

    Args:
        path: its folder.
        dtype: auto, float32, bfloat16 or float16.
        batch: sequences decoded together.

    Raises:
        ValueError: a checkpoint that cannot be loaded.
    """

    def __init__(self, path: str, dtype: str, batch: int) -> None:
        from transformers import AutoTokenizer

        device = "cuda" if torch.cuda.is_available() else "cpu"
        kind = load_dtype(dtype, device)
        self.model = Transformer.load(path, dtype=kind, device=device)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        eos = {*self.model.config.eos_token_ids, self._tokenizer.eos_token_id} - {None}
        self.eos: list[int] = sorted(eos)
        self._batch = batch

    @property
    def shape(self) -> ModelConfig:
        """Sizes of the model."""
        return self.model.config

    def decode(self, requests: Sequence[Request], draft: DraftConfig = PLAIN) -> Decoded:
        """Completions of the requests.

        Raises:
            ValueError: a request that fails, or a configuration that the model cannot serve.
        """
        longest = max(len(r.prompt_token_ids) + r.sampling.max_tokens for r in requests)
        batch = min(self._batch, len(requests))
        slots = batch * -(-longest // SLOT_GRAIN) * SLOT_GRAIN
        config = EngineConfig(
            max_num_seqs=batch,
            max_model_len=longest,
            kv_budget_bytes=slots * bytes_per_slot(self.shape, self.model.dtype),
            draft=draft,
        )
        engine = Engine(self.model, config, eos_token_ids=self.eos, detokenize=self._detokenize)
        began = perf_counter()
        handles = [engine.submit(r) for r in requests]
        done: dict[int, Completion] = {}
        while engine.has_work:
            done |= {c.handle: c for c in engine.step()}
        seconds = perf_counter() - began
        completions = [done[h] for h in handles]
        failed = next((c for c in completions if c.finish_reason == "error"), None)
        if failed is not None:
            raise ValueError(f"a row of the sample fails: {failed.error_message}")
        return Decoded(completions, seconds)

    def _detokenize(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))
