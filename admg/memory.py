"""How many KV slots the engine gets, from a budget in bytes.

On CUDA the budget is what `gpu_memory_utilization` of the device leaves beside all that is there
already (weights, drafts, others) and what passes, rounds and their graphs are known to need. On the
CPU it is a share of the free memory, or of all memory where one sequence needs more. All of it is
written once, as zeros, when the engine is made: what it costs is not paid while rows are decoded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from admg.config import EngineConfig
from admg.families import ModelConfig
from admg.kv_arena import SLOT_GRAIN, bytes_per_slot

# The share of the memory taken on the CPU where no budget is given.
CPU_SHARE = 0.25
# What estimates without a device count on, of the memory that weights leave.
CUDA_SHARE = 0.85


@dataclass(frozen=True, slots=True)
class ArenaSize:
    """Slots of the arena, and the longest sequence in tokens."""

    num_slots: int
    max_model_len: int


def longest_of(model: ModelConfig) -> int:
    """Tokens of the longest sequence that a model takes, whatever memory there is."""
    return min(model.max_position_embeddings, model.sliding_window or model.max_position_embeddings)


def arena_size(
    model: ModelConfig,
    dtype: torch.dtype,
    device: torch.device | str,
    config: EngineConfig,
    reserved: int = 0,
) -> ArenaSize:
    """Slots for `max_num_seqs` sequences of full length, or what the KV budget allows.

    Needs no weights, so a run can be refused before they are loaded. Where `max_model_len` is not
    given, the longest sequence is the model's own limit or what the budget holds. `reserved` are
    the bytes that a device must keep free for other things, where the budget is what is left.

    Raises:
        ValueError: `max_model_len` beyond the model's positions or its attention window, or a
            budget that does not hold one sequence of that length, with the numbers.
    """
    limit = longest_of(model)
    length = config.max_model_len or limit
    if length > limit:
        positions = limit == model.max_position_embeddings
        what = "max_position_embeddings" if positions else "sliding_window"
        raise ValueError(
            f"max_model_len is {length}: it must be at most the model's {what}, {limit}"
        )
    per_slot = bytes_per_slot(model, dtype)
    longest = -(-length // SLOT_GRAIN) * SLOT_GRAIN
    budget = config.kv_budget_bytes
    if budget is None:
        budget = _free_bytes(torch.device(device), config, reserved, longest * per_slot)
    slots = budget // per_slot // SLOT_GRAIN * SLOT_GRAIN
    if slots < (longest if config.max_model_len else SLOT_GRAIN):
        tokens = length if config.max_model_len else SLOT_GRAIN
        needed = (longest if config.max_model_len else SLOT_GRAIN) * per_slot
        right = f"at least {needed} for one sequence of {tokens} tokens, {per_slot} bytes each"
        if slots >= SLOT_GRAIN:
            right += f", or set max_model_len to {slots} or less: it is part of what the job is"
        if config.kv_budget_bytes is None and torch.device(device).type == "cuda":
            raise ValueError(
                f"gpu_memory_utilization is {config.gpu_memory_utilization:g}, which leaves "
                f"{budget} bytes for keys and values: they must be {right}"
            )
        raise ValueError(f"kv_budget_bytes is {budget}: it must be {right}")
    return ArenaSize(min(slots, longest * config.max_num_seqs), min(length, slots))


def _free_bytes(device: torch.device, config: EngineConfig, reserved: int, one: int) -> int:
    """What may be taken; `one` are the bytes of the longest sequence."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return max(int(total * config.gpu_memory_utilization) - (total - free) - reserved, 0)
    page = os.sysconf("SC_PAGE_SIZE") * CPU_SHARE
    # What is free at this moment says nothing of which sequences the machine can hold.
    least = min(one, int(os.sysconf("SC_PHYS_PAGES") * page))
    return max(least, int(os.sysconf("SC_AVPHYS_PAGES") * page))
