"""Whether an engine's cache is what one pass over the text from scratch writes."""

from __future__ import annotations

import torch

from admg.engine import Engine
from admg.model import Transformer
from tests.admg.decoding import full_pass


def own_slots(arena, layer: int, extent, length: int) -> list[torch.Tensor]:
    """Keys and values of one extent's first slots, by the documented arithmetic of the arena."""
    heads = arena.num_kv_heads
    rows = [slice(extent.start * heads + h * extent.capacity, None) for h in range(heads)]
    return [
        torch.stack([store[layer][row][:length] for row in rows])
        for store in (arena.keys, arena.values)
    ]


@torch.inference_mode()
def decode_with_plain_cache(engine: Engine, model: Transformer) -> int:
    """Decode all, and after every step compare every cached key and value; layers compared."""
    compared = 0
    while engine.has_work:
        engine.step()
        for s in engine._scheduler.decoding():
            assert s.computed == len(s.tokens) - 1
            _, arena, extent = full_pass(model, s.tokens[: s.computed])
            for layer in range(model.config.num_layers):
                ours = own_slots(engine._arena, layer, s.extent, s.computed)
                theirs = own_slots(arena, layer, extent, s.computed)
                for our, their in zip(ours, theirs, strict=True):
                    torch.testing.assert_close(our, their, rtol=0, atol=1e-4)
                compared += 1
    return compared
