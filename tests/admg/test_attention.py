"""Attention over extents against a dense computation in fp64, one sequence at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from admg.attention import attend, plan_attention
from admg.attention_groups import Group
from admg.attention_pages import Span
from admg.attention_varlen import PackedAttention
from admg.batch import RaggedBatch
from admg.kv_arena import Extent, KVArena
from admg.model import Transformer
from tests.admg.decoding import load

LAYER = 2
TOLERANCE = 1e-5
# Query heads by KV heads.
HEADS = {1: 4, 2: 4, 3: 3}


@pytest.fixture(scope="module")
def model(llama_checkpoint: Path) -> Transformer:
    return load(llama_checkpoint)


@pytest.fixture(params=HEADS, ids=["one-kv-head", "grouped", "ungrouped"])
def arena(model: Transformer, request: pytest.FixtureRequest) -> KVArena:
    """An arena whose slots all hold large stale values, so that reading one shows."""
    heads, kv_heads = HEADS[request.param], request.param
    config = replace(model.config, num_heads=heads, num_kv_heads=kv_heads)
    arena = KVArena(config, 4096, torch.float32, "cpu")
    extent = arena.allocate(4096)
    rows = RaggedBatch.build([([0] * 4096, 0, extent)]).arena_rows(kv_heads)
    stale = torch.full((4096, kv_heads, config.head_dim), 50.0)
    arena.write(LAYER, rows, stale, stale)
    arena.release(extent)
    arena.heads = heads
    arena.kv_heads, arena.head_dim = kv_heads, config.head_dim
    return arena


@pytest.fixture(params=["as-chosen", "groups", "spans", "units"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which way of attending is taken where there are several; "units" is that of other devices."""
    if request.param == "units":

        def units(batch: RaggedBatch, kv_heads: int, *_: object) -> PackedAttention:
            return PackedAttention.of(batch, kv_heads, HEADS[kv_heads] // kv_heads)

        monkeypatch.setattr("admg.attention.plan_attention", units)
    elif request.param != "as-chosen":
        share = math.inf if request.param == "groups" else 0.0
        monkeypatch.setattr("admg.attention.PAGED_SHARE", share)
        monkeypatch.setattr("admg.attention.PAGED_FIXED", 0.0)
    return str(request.param)


def test_few_equal_extents_are_a_group_and_many_different_ones_a_span(way: str) -> None:
    """Of a 135M model's shape, as the engine chooses."""
    kinds = []
    for lengths in ([832] * 16, [64 * (4 + i % 9) for i in range(16)]):
        start, parts = 0, []
        for length in lengths:
            parts.append(([9], length - 9, Extent(start, length)))
            start += length
        plan = plan_attention(RaggedBatch.build(parts), 3, 64, torch.bfloat16)
        kinds.append([type(part) for part in plan.short])
    chosen = {"groups": [[Group], [Group] * 16], "spans": [[Span], [Span]]}
    assert kinds == chosen.get(way, [[Group], [Span]])


def dense(q: Tensor, k: Tensor, v: Tensor, start: int) -> Tensor:
    """Attention [n, H, d] of queries at positions start.. over keys [N, K, d], in fp64."""
    group = q.shape[1] // k.shape[1]
    q, k, v = q.double(), k.double(), v.double()
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
    future = torch.arange(k.shape[0])[None] > start + torch.arange(q.shape[0])[:, None]
    weights = scores.masked_fill(future, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v)


def check(arena: KVArena, segments: Sequence[tuple[int, int, Extent]], seed: int = 0) -> None:
    """Segments of (start, count, extent): each attends to its own keys 0..start+count."""
    generator = torch.Generator().manual_seed(seed)

    def random(n: int, heads: int) -> Tensor:
        return 2 * torch.randn(n, heads, arena.head_dim, generator=generator)

    keys, values = [], []
    for start, count, extent in segments:
        keys.append(random(start + count, arena.kv_heads))
        values.append(random(start + count, arena.kv_heads))
        whole = RaggedBatch.build([([9] * (start + count), 0, extent)])
        arena.write(LAYER, whole.arena_rows(arena.kv_heads), keys[-1], values[-1])
    queries = [random(count, arena.heads) for _, count, _ in segments]
    batch = RaggedBatch.build([([9] * count, start, extent) for start, count, extent in segments])
    output = attend(torch.cat(queries), LAYER, batch, arena)
    parts = output.split([count for _, count, _ in segments])
    for i, (start, _, _) in enumerate(segments):
        expected = dense(queries[i], keys[i], values[i], start)
        difference = (parts[i].reshape(expected.shape) - expected).abs().max().item()
        assert difference < TOLERANCE, f"segment {i} of {segments} differs by {difference}"


def place(arena: KVArena, lengths: Sequence[int]) -> list[Extent]:
    extents = [arena.allocate(length) for length in lengths]
    assert None not in extents
    return extents


def test_one_token_each_over_ragged_lengths(arena: KVArena) -> None:
    starts = [0, 1, 30, 31, 32, 33, 100, 62]
    extents = place(arena, [128] * len(starts))
    check(arena, [(s, 1, e) for s, e in zip(starts, extents, strict=True)])


@pytest.mark.parametrize("counts", [(1, 1, 1, 1, 1), (5, 5, 5, 5, 5), (1, 5, 2, 9, 3)])
def test_several_query_tokens_of_a_draft(arena: KVArena, counts: tuple[int, ...]) -> None:
    starts = [0, 40, 17, 90, 41]
    extents = place(arena, [128] * 5)
    check(arena, list(zip(starts, counts, extents, strict=True)))


def test_extents_of_unequal_capacities(arena: KVArena) -> None:
    lengths = [64, 32, 320, 64, 96, 32]
    starts = [50, 3, 200, 10, 95, 0]
    extents = place(arena, lengths)
    check(arena, [(s, 1, e) for s, e in zip(starts, extents, strict=True)])


def test_extents_with_holes_between_them(arena: KVArena) -> None:
    """Every other extent has been given back; what is left has gaps and stale neighbours."""
    extents = place(arena, [96] * 9)
    for extent in extents[1::2]:
        arena.release(extent)
    check(arena, [(20 + i, 1 + i % 3, e) for i, e in enumerate(extents[::2])])


def test_segments_in_any_order(arena: KVArena) -> None:
    extents = place(arena, [96] * 6)
    for order in ([5, 0, 3, 1, 4, 2], [5, 4, 3, 2, 1, 0], [2, 3]):
        check(arena, [(11 * i, 1 + i % 2, extents[i]) for i in order])


def test_a_full_extent(arena: KVArena) -> None:
    extents = place(arena, [64, 64])
    check(arena, [(63, 1, extents[0]), (60, 4, extents[1])])
    check(arena, [(0, 64, extents[0]), (32, 32, extents[1])])


@pytest.mark.parametrize("count", [31, 32, 33, 34, 100])
def test_long_segments_with_and_without_a_past(arena: KVArena, count: int) -> None:
    extents = place(arena, [320, 320, 320])
    check(arena, [(0, count, extents[0]), (57, count, extents[1]), (150, count, extents[2])])


def test_long_and_short_segments_in_one_pass(arena: KVArena) -> None:
    extents = place(arena, [320, 64, 320, 64, 320])
    segments = [(0, 200, extents[0]), (40, 1, extents[1]), (33, 90, extents[2])]
    check(arena, [*segments, (20, 6, extents[3]), (300, 1, extents[4])])


def test_very_different_lengths_side_by_side(arena: KVArena) -> None:
    extents = place(arena, [512] * 4)
    check(
        arena, [(500, 2, extents[0]), (1, 2, extents[1]), (499, 2, extents[2]), (0, 1, extents[3])]
    )


def test_random_passes(arena: KVArena) -> None:
    generator = torch.Generator().manual_seed(11)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    for trial in range(25):
        extents, segments = [], []
        for _ in range(draw(1, 9)):
            start, count = draw(0, 150), draw(1, 40) if draw(0, 3) == 0 else draw(1, 6)
            extents.append(arena.allocate(start + count + draw(0, 100)))
            segments.append((start, count, extents[-1]))
        check(arena, segments, seed=trial)
        for extent in extents:
            arena.release(extent)


def test_a_subset_of_a_pass_attends_as_in_the_pass(arena: KVArena) -> None:
    """Draft passes attend for some of their sequences: the others' layers are dropped."""
    extents = place(arena, [96] * 5)
    generator = torch.Generator().manual_seed(2)
    batch = RaggedBatch.build([([7] * (1 + i % 2), 30 + i, e) for i, e in enumerate(extents)])
    tokens = len(batch.positions)
    shape = (arena.heads, arena.head_dim)
    q = torch.randn(tokens, *shape, generator=generator)
    for extent in extents:
        rows = RaggedBatch.build([([7] * 60, 0, extent)]).arena_rows(arena.kv_heads)
        new = torch.randn(60, arena.kv_heads, arena.head_dim, generator=generator)
        arena.write(LAYER, rows, new, new.flip(0))
    whole = attend(q, LAYER, batch, arena)
    for members in ([0], [1, 3], [0, 1, 2, 3, 4], [2, 4]):
        sub = batch.subset(members)
        part = attend(q[sub.index], LAYER, sub.batch, arena)
        torch.testing.assert_close(part, whole[sub.index], atol=TOLERANCE, rtol=0)
