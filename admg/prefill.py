"""Prefill: prompt chunks through the full model; similarities on the way, first tokens after."""

from __future__ import annotations

import time

import torch

from admg.batch import RaggedBatch
from admg.config import DraftConfig
from admg.kv_arena import KVArena
from admg.model import Transformer
from admg.sampling import Sampler, finite_rows
from admg.scheduler import Chunk
from admg.sequence import Sequence
from admg.similarity import SimilarityObserver


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
    observer = _observer(model, chunks, draft) if draft.drafter != "none" else None
    hidden = model.forward(batch, arena, observer=observer)
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
        if observer is not None:
            sums = observer.sums[i]
            s.similarity_sums = sums if s.similarity_sums is None else s.similarity_sums + sums
            s.similarity_weight += float(observer.weight[i])
            if complete[i]:
                s.similarity = tuple((s.similarity_sums / s.similarity_weight).tolist())
                s.similarity_sums = None
    return list(zip(finished, tokens, strict=True))


def _observer(model: Transformer, chunks: list[Chunk], draft: DraftConfig) -> SimilarityObserver:
    return SimilarityObserver(
        [c.sequence.computed for c in chunks],
        [c.count for c in chunks],
        [c.sequence.prompt_length for c in chunks],
        model.config.num_layers,
        draft.similarity,
        draft.similarity_decay,
        model.device,
    )
