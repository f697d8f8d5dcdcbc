"""Which prompt tokens are prefilled together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from admg.config import EngineConfig, SamplingParams
from admg.families import read_model_config
from admg.kv_arena import KVArena
from admg.request import Request
from admg.scheduler import Scheduler


def passes(path: Path, lengths: list[int], prefill_tokens: int) -> list[list[int]]:
    """The prompt tokens of each pass, chunk by chunk."""
    import torch

    model = replace(read_model_config(path), num_layers=1)
    arena = KVArena(model, 8192, torch.float32, "cpu")
    scheduler = Scheduler(EngineConfig(prefill_tokens=prefill_tokens), arena, frozenset())
    for i, length in enumerate(lengths):
        scheduler.add(i, Request([2] * length, SamplingParams(max_tokens=1), str(i)))
    scheduler.admit()
    found = []
    while chunks := scheduler.next_chunks():
        found.append([c.count for c in chunks])
        for chunk in chunks:
            chunk.sequence.computed += chunk.count
    return found


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([70, 70, 70], [[70], [70], [70]]),  # more than half full without the next one
        ([30, 30, 30, 30], [[30, 30, 30], [30]]),
        ([250, 70], [[100], [100], [50], [70]]),  # what fits nowhere is cut
        ([70, 40], [[70], [40]]),
        ([90, 60, 10], [[90, 10], [60]]),  # a small one goes where there is room
        ([100, 100], [[100], [100]]),
        ([240, 30], [[100], [100], [40, 30]]),
        ([140, 90], [[100], [40, 60], [30]]),  # else the pass would be less than half full
    ],
)
def test_prompts_are_cut_only_where_passes_would_be_empty(
    llama_checkpoint: Path, lengths: list[int], expected: list[list[int]]
) -> None:
    found = passes(llama_checkpoint, lengths, 100)
    assert found == expected
    assert sum(map(sum, found)) == sum(lengths)


def test_every_prompt_is_complete_in_the_end(llama_checkpoint: Path) -> None:
    lengths = [(37 * i) % 211 + 1 for i in range(16)]
    for budget in (1, 7, 64, 1000):
        found = passes(llama_checkpoint, lengths, budget)
        assert sum(map(sum, found)) == sum(lengths)
        assert all(0 < sum(p) <= budget and min(p) > 0 for p in found)
        assert all(2 * sum(p) > budget for p in found[:-1]), "no pass but the last is half empty"
