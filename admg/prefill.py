"""Prefill: prompt chunks through the full model; similarities on the way, first tokens after."""

from __future__ import annotations

import time

import torch

from admg.batch import RaggedBatch
from admg.config import DraftConfig
from admg.kv_arena import KVArena
from admg.learning import PromptObservers
from admg.model import Transformer
from admg.sampling import Sampler, finite_rows
from admg.scheduler import Chunk
from admg.sequence import Sequence


def prefill_pass(
    model: Transformer,
    arena: KVArena,
    sampler: Sampler,
    chunks: list[Chunk],
    draft: DraftConfig,
) -> list[tuple[Sequence, int | None]]:
    """Run one pass over the chunks.

    Returns:
        The sequences whose prompt is complete now, each with its first token, or None where the
        model's output was not finite.
    """
    start = time.perf_counter()
    batch = RaggedBatch.build([c.part for c in chunks], model.device)
    observers = PromptObservers(
        model,
        draft,
        [c.sequence.computed for c in chunks],
        [c.count for c in chunks],
        [c.sequence.prompt_length for c in chunks],
        (batch, arena),
    )
    hidden = model.forward(batch, arena, observers=observers.all, heads=observers.heads)
    complete = [c.finishes for c in chunks]
    ends = [s.first + s.count - 1 for s, end in zip(batch.segments, complete, strict=True) if end]
    finished = [c.sequence for c, end in zip(chunks, complete, strict=True) if end]
    tokens: list[int | None] = []
    if finished:
        logits = model.logits(hidden[torch.tensor(ends, device=hidden.device)])
        drawn = sampler.draw(logits, [s.law_row() for s in finished]).tolist()
        finite = finite_rows(logits).tolist()
        tokens = [t if good else None for t, good in zip(drawn, finite, strict=True)]
    seconds = time.perf_counter() - start
    total = sum(c.count for c in chunks)
    for i, chunk in enumerate(chunks):
        s = chunk.sequence
        s.computed += chunk.count
        s.tally.prefill_seconds += seconds * chunk.count / total
        s.learned = observers.onto(s.learned, i)
        if complete[i]:
            s.similarity = s.learned.similarity
            s.units = s.learned.units
            remade = draft.remake_after or draft.remake_every
            s.learned = s.learned.after_prompt(remade, draft.windows is not None)
    return list(zip(finished, tokens, strict=True))
