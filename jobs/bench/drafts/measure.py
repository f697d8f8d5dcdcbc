"""Tokens per target pass, acceptance and bytes of one kind of draft: counts, never times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

import torch

from admg.config import DraftConfig, EngineConfig, LowBit, SamplingParams
from admg.draft_rules import WindowRule
from admg.engine import Engine
from admg.families import ModelConfig
from admg.kv_arena import SLOT_GRAIN, bytes_per_slot
from admg.model import Transformer
from admg.prompt_store import PromptStore
from admg.request import Completion, Request
from jobs.bench.drafts.variants import WINDOW, Variant, own

_STORE_BYTES = 4 * 2**30
# What weights are compared with: a number of bf16.
_BYTES_PER_WEIGHT = 2


@dataclass(frozen=True, slots=True)
class Numbers:
    """What one kind of draft brought, over all prompts.

    `tokens_per_pass` of target passes with its standard error over prompts, `accepted` of the
    drafted tokens. `kv_saved` is the share of keys and values that a draft pass does not read,
    `weights_saved` that of the weights' bytes in bf16; None for drafts that no pass makes.
    `differing` completions were not plain decoding's, as near-ties may be (None: they need not be).
    """

    tokens_per_pass: float
    standard_error: float
    accepted: float
    drafted: int
    kv_saved: float | None
    weights_saved: float | None
    differing: int | None

    def to_dict(self) -> dict[str, Any]:
        """By name, rounded."""
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}


class Bench:
    """Decodes the same prompts with one kind of draft after another; each is prefilled once.

    Args:
        path: the model's folder.
        prompts: token ids.
        max_tokens: of every completion; EOS is ignored.
        batch: sequences decoded together.
    """

    def __init__(
        self, path: str, prompts: Sequence[list[int]], max_tokens: int, batch: int
    ) -> None:
        self._path, self._prompts, self._tokens = path, prompts, max_tokens
        self._batch = min(batch, len(prompts))
        self._model = Transformer.load(path, dtype=torch.float32)
        self._kind: LowBit | None = None
        observe = own(windows=WindowRule(share=0.5, window=WINDOW))
        self._store = PromptStore(observe, _STORE_BYTES)
        self._plain: dict[float, dict[str, list[int]]] = {}

    @property
    def config(self) -> ModelConfig:
        """The model's."""
        return self._model.config

    def measure(self, variant: Variant) -> Numbers:
        """Decode all prompts with these drafts."""
        shared = not variant.draft.by_rejection
        if shared and variant.temperature not in self._plain:
            plain = Variant("", "plain", DraftConfig(drafter="none"), variant.temperature)
            done = self._decoded(plain)
            self._plain[variant.temperature] = {c.key: c.token_ids for c in done}
        low_bit = variant.draft.low_bit
        if low_bit is not None and self._kind != low_bit:
            self._load(low_bit)
        done = self._decoded(variant)
        numbers = _summed(done)
        differing = None
        if shared:
            plain_ids = self._plain[variant.temperature]
            differing = sum(c.token_ids != plain_ids[c.key] for c in done)
        return Numbers(*numbers, *self._saved(variant, done), differing)

    def _load(self, low_bit: LowBit) -> None:
        """The same model with smaller weights beside it; one such form at a time."""
        self._kind = low_bit
        self._model = Transformer.load(self._path, dtype=torch.float32, low_bit=low_bit)

    def _decoded(self, variant: Variant) -> list[Completion]:
        length = max(map(len, self._prompts)) + self._tokens
        slots = self._batch * -(-length // SLOT_GRAIN) * SLOT_GRAIN
        config = EngineConfig(
            max_num_seqs=self._batch,
            max_model_len=length,
            kv_budget_bytes=slots * bytes_per_slot(self.config, self._model.dtype),
            draft=variant.draft,
        )
        engine = Engine(self._model, config, eos_token_ids=[], prompts=self._store)
        law = SamplingParams(
            max_tokens=self._tokens, temperature=variant.temperature, ignore_eos=True
        )
        done = list(engine.generate(Request(p, law, str(i)) for i, p in enumerate(self._prompts)))
        wrong = next((c for c in done if len(c.token_ids) != self._tokens), None)
        if wrong is not None:
            raise RuntimeError(wrong.error_message or f"{len(wrong.token_ids)} tokens came")
        return done

    def _saved(
        self, variant: Variant, done: Sequence[Completion]
    ) -> tuple[float | None, float | None]:
        if not variant.draft.self_drafts:
            return None, None
        c = self.config
        kv = mean(d.stats.draft_kv_saved or 0.0 for d in done)
        attention = c.hidden_size * c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
        layer = attention + 3 * c.hidden_size * c.intermediate_size
        whole = c.num_layers * layer + c.vocab_size * c.hidden_size
        dropped = mean(len(d.stats.dropped_attention_layers) for d in done)
        read = 1 - dropped * attention / whole
        if variant.draft.low_bit is not None:
            read *= self._model.low_bit_bytes / (_BYTES_PER_WEIGHT * whole)
        return kv, 1 - read


def _summed(done: Sequence[Completion]) -> tuple[float, float, float, int]:
    """Tokens per pass with its standard error, accepted share, drafted tokens."""
    stats = [d.stats for d in done]
    passes = [s.num_spec_steps for s in stats]
    tokens = [s.completion_tokens - 1 for s in stats]  # the first one is the prefill's
    rate = sum(tokens) / sum(passes)
    error, n = 0.0, len(done)
    if n > 1:
        squares = sum((t - rate * p) ** 2 for t, p in zip(tokens, passes, strict=True))
        error = math.sqrt(squares * n / (n - 1)) / sum(passes)
    drafted = sum(s.num_draft_tokens for s in stats)
    accepted = sum(s.num_accepted_draft_tokens for s in stats)
    return rate, error, accepted / drafted if drafted else 0.0, drafted
