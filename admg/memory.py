"""How many KV slots the engine gets, from a budget in bytes."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from admg.config import EngineConfig
from admg.kv_arena import SLOT_GRAIN, bytes_per_slot
from admg.model import Transformer

# Shares of the free memory taken where no budget is given. On CPU the pages are only touched as
# sequences grow into them.
CPU_SHARE = 0.25
CUDA_SHARE = 0.85


@dataclass(frozen=True, slots=True)
class ArenaSize:
    """Slots of the arena, and the longest sequence in tokens."""

    num_slots: int
    max_model_len: int


def arena_size(model: Transformer, config: EngineConfig) -> ArenaSize:
    """Slots for `max_num_seqs` sequences of full length, or what the KV budget allows.

    Raises:
        ValueError: `max_model_len` beyond the model's positions or its attention window, or a
            budget that holds not even the smallest extent.
    """
    c = model.config
    limit = min(c.max_position_embeddings, c.sliding_window or c.max_position_embeddings)
    length = config.max_model_len or limit
    if length > limit:
        what = "max_position_embeddings" if limit == c.max_position_embeddings else "sliding_window"
        raise ValueError(
            f"max_model_len is {length}: it must be at most the model's {what}, {limit}"
        )
    per_slot = bytes_per_slot(c, model.dtype)
    budget = config.kv_budget_bytes or _free_bytes(model.device)
    longest = -(-length // SLOT_GRAIN) * SLOT_GRAIN
    num_slots = min(budget // per_slot, longest * config.max_num_seqs)
    if num_slots < SLOT_GRAIN:
        raise ValueError(
            f"kv_budget_bytes is {budget}: it must be at least {SLOT_GRAIN * per_slot} "
            f"({SLOT_GRAIN} tokens of {per_slot} bytes)"
        )
    return ArenaSize(num_slots, length)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * CUDA_SHARE)
    return int(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * CPU_SHARE)
