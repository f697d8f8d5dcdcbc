"""What an engine needs of a device's memory beside weights, keys and values.

Passes are measured: the largest ones of an engine are run on nothing in particular, and the peak of
the allocator is what they take. What rounds on the device hold is counted. Graphs are given a bound
that they stop at.
"""

from __future__ import annotations

import torch

from admg.batch import RaggedBatch
from admg.config import EngineConfig
from admg.cuda_graphs import GraphLimits
from admg.device_rounds import plays_whole
from admg.device_sizes import buffers_of, most_drafts
from admg.kv_arena import SLOT_GRAIN, KVArena
from admg.memory import ArenaSize, arena_size
from admg.model import Transformer
from admg.noise import token_hash
from admg.row_laws import LawKind, RowLaws

# Of what was measured, for allocations that do not fit into each other's holes.
_SLACK = 1.1


def engine_size(model: Transformer, config: EngineConfig) -> ArenaSize:
    """What is left for keys and values once the weights are there.

    Raises:
        ValueError: see `arena_size`.
    """
    reserved = reserved_bytes(model, config)
    return arena_size(model.config, model.dtype, model.device, config, reserved)


def reserved_bytes(model: Transformer, config: EngineConfig) -> int:
    """Bytes to keep free for passes, rounds and graphs; 0 on the CPU."""
    if model.device.type != "cuda" or config.kv_budget_bytes is not None:
        return 0
    peak = int(_SLACK * _passes(model, config))
    if not plays_whole(config, model.device):
        return peak
    # Graphs have memory of their own, and the capture that reaches their bound goes beyond it.
    round_peak = peak + _until_known(model, config)
    graphs = round_peak + GraphLimits.of(model.device).nbytes
    return round_peak + _held(model, config) + graphs


@torch.inference_mode()
def _passes(model: Transformer, config: EngineConfig) -> int:
    """The allocator's peak over a full prefill pass and the logits of a full round."""
    device, c = model.device, model.config
    torch.cuda.empty_cache()
    tokens = min(config.prefill_tokens, c.max_position_embeddings)
    slots = -(-tokens // SLOT_GRAIN) * SLOT_GRAIN
    arena = KVArena(c, slots, model.dtype, device)
    extent = arena.allocate(tokens)
    assert extent is not None
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    hidden = model.forward(RaggedBatch.build([([0] * tokens, 0, extent)], device), arena)
    rows = config.max_num_seqs * (1 + most_drafts(config.draft))
    logits = model.logits(hidden[:1].expand(rows, -1))
    _any_laws(rows, device).draw(
        logits, LawKind("mixed"), token_hash(torch.arange(c.vocab_size, device=device))
    )
    peak = torch.cuda.max_memory_allocated(device) - before
    del arena, hidden, logits
    torch.cuda.empty_cache()
    return peak


def _any_laws(rows: int, device: torch.device) -> RowLaws:
    """Of so many rows: the kind that takes most memory to draw from."""
    whole = torch.zeros(rows, dtype=torch.int64, device=device)
    real = torch.ones(rows, device=device)
    return RowLaws(
        base=whole,
        position=whole,
        temperature=real,
        top_k=whole + 1,
        top_p=real,
        min_p=real,
        stops=whole[:, None],
        min_tokens=whole,
    )


def _held(model: Transformer, config: EngineConfig) -> int:
    """What rounds on the device keep from one to the next: their buffers, and running means."""
    buffers, means = buffers_of(config, model.config, torch.device("meta"))
    return buffers.nbytes + means.nbytes


def _until_known(model: Transformer, config: EngineConfig) -> int:
    """What a round that teaches keeps of its layers' outputs until verdicts are known."""
    draft, c = config.draft, model.config
    if not (draft.self_drafts and draft.hole_filling):
        return 0
    each = model.dtype.itemsize + (4 if draft.windows is not None else 0)
    tokens = config.max_num_seqs * (1 + most_drafts(draft))
    return tokens * c.num_layers * c.hidden_size * each
