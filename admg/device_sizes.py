"""How large the buffers of an engine's rounds on the device are."""

from __future__ import annotations

import torch

from admg.config import DraftConfig, EngineConfig
from admg.controller import LOOKUP_LIMITS
from admg.families import ModelConfig
from admg.round_buffers import Means, RoundBuffers, Sizes


def most_drafts(draft: DraftConfig) -> int:
    """Draft tokens of a sequence in one round at most."""
    by_lookup = LOOKUP_LIMITS if draft.drafter == "auto" else ()
    return max(draft.draft_tokens + draft.lookup_tail, *by_lookup, 0)


def buffers_of(
    config: EngineConfig, model: ModelConfig, device: torch.device
) -> tuple[RoundBuffers, Means]:
    """What the rounds of an engine hold on the device from one to the next."""
    draft, most = config.draft, config.max_num_seqs
    sizes = Sizes(most, most_drafts(draft), model.num_layers, model.num_kv_heads)
    means = Means(None, None)
    if draft.self_drafts and draft.hole_filling:
        shape = (most, model.num_layers, model.hidden_size)
        means = Means.new(*shape, device, limits=draft.windows is not None)
    return RoundBuffers.new(sizes, device), means
