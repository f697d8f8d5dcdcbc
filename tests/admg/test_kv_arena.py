"""The arena hands every slot to one sequence at a time and gets all of them back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from admg.batch import RaggedBatch
from admg.kv_arena import SLOT_GRAIN, Extent, KVArena, bytes_per_slot
from admg.model import Transformer
from tests.admg.decoding import load

NUM_SLOTS = 20 * SLOT_GRAIN


@pytest.fixture(scope="module")
def model(llama_checkpoint: Path) -> Transformer:
    return load(llama_checkpoint)


def rounded(length: int, grain: int) -> int:
    return -(-length // grain) * grain


class ArenaMachine(RuleBasedStateMachine):
    """Random allocations and releases beside a model: the list of extents in use."""

    model: Transformer

    def __init__(self) -> None:
        super().__init__()
        self.arena = KVArena(self.model.config, NUM_SLOTS, torch.float32, "cpu")
        self.owned: list[Extent] = []

    def gaps(self) -> list[int]:
        edges = [0, *(x for e in sorted(self.owned) for x in (e.start, e.end)), NUM_SLOTS]
        return [end - start for start, end in zip(edges[::2], edges[1::2], strict=True)]

    @rule(length=st.integers(1, NUM_SLOTS + 70))
    def allocate(self, length: int) -> None:
        extent = self.arena.allocate(length)
        if extent is None:
            assert max(self.gaps()) < rounded(length, SLOT_GRAIN)
            return
        assert extent.capacity >= length
        assert extent.start % SLOT_GRAIN == extent.capacity % SLOT_GRAIN == 0
        assert 0 <= extent.start < extent.end == extent.start + extent.capacity <= NUM_SLOTS
        assert all(extent.end <= o.start or o.end <= extent.start for o in self.owned)
        self.owned.append(extent)

    @precondition(lambda self: self.owned)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.owned) - 1))
        extent = self.owned.pop(at)
        self.arena.release(extent)
        with pytest.raises(ValueError):
            self.arena.release(extent)

    @rule(start=st.integers(0, 25), capacity=st.integers(1, 25))
    def refuse_what_was_never_allocated(self, start: int, capacity: int) -> None:
        extent = Extent(start * SLOT_GRAIN, capacity * SLOT_GRAIN)
        if extent not in self.owned:
            with pytest.raises(ValueError):
                self.arena.release(extent)

    @invariant()
    def tiled(self) -> None:
        self.arena.check()

    def teardown(self) -> None:
        """All given back, the whole arena is one extent again: free neighbours were merged."""
        for extent in self.owned:
            self.arena.release(extent)
        self.arena.check()
        assert self.arena.allocate(NUM_SLOTS) == Extent(0, NUM_SLOTS)


def test_any_order_of_allocating_and_releasing(model: Transformer) -> None:
    machine = type("Machine", (ArenaMachine,), {"model": model})
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True),
    )


def test_fits_tells_what_an_empty_arena_gives(model: Transformer) -> None:
    for length in (1, SLOT_GRAIN, SLOT_GRAIN + 1, NUM_SLOTS, NUM_SLOTS + 1):
        arena = KVArena(model.config, NUM_SLOTS, torch.float32, "cpu")
        assert arena.fits(length) == (arena.allocate(length) is not None), length


def test_similar_lengths_get_equal_capacities(model: Transformer) -> None:
    """So that neighbours form one batch; the waste is bounded."""
    arena = KVArena(model.config, NUM_SLOTS, torch.float32, "cpu")
    extents = [arena.allocate(n) for n in (128, 97, 128)]
    assert [e.capacity for e in extents if e] == [128] * 3
    assert [e.start for e in extents if e] == [0, 128, 256]
    assert arena.allocate(20).capacity == SLOT_GRAIN


def test_a_broken_free_list_is_noticed(model: Transformer) -> None:
    """Reaches into the arena: an extent that two own, as a forgotten allocation would leave it."""
    arena = KVArena(model.config, NUM_SLOTS, torch.float32, "cpu")
    extent = arena.allocate(100)
    arena.check()
    arena._owned.discard(extent)
    with pytest.raises(AssertionError):
        arena.check()


def test_bytes_of_a_slot(model: Transformer) -> None:
    c = model.config
    expected = 2 * c.num_layers * c.num_kv_heads * c.head_dim
    assert bytes_per_slot(c, torch.float32) == 4 * expected
    assert bytes_per_slot(c, torch.bfloat16) == 2 * expected


def test_what_is_written_is_read_by_unit_and_position(model: Transformer) -> None:
    """Neighbouring extents of one capacity, written at scattered positions, read as one batch."""
    c = model.config
    arena = KVArena(c, NUM_SLOTS, torch.float32, "cpu")
    extents = [arena.allocate(40) for _ in range(3)]
    generator = torch.Generator().manual_seed(3)
    shape = (c.num_kv_heads, 40, c.head_dim)
    keys = [torch.randn(shape, generator=generator) for _ in extents]
    for start, end in ((0, 11), (11, 12), (12, 40)):
        parts = [([5] * (end - start), start, extent) for extent in extents]
        rows = RaggedBatch.build(parts).arena_rows(c.num_kv_heads)
        new = torch.cat([k[:, start:end].transpose(0, 1) for k in keys])  # [T, K, d]
        for layer in range(c.num_layers):
            arena.write(layer, rows, new + layer, -new - layer)
    for layer in range(c.num_layers):
        read_keys, read_values = arena.units(layer, extents[0], 3)
        assert read_keys.shape == (3 * c.num_kv_heads, extents[0].capacity, c.head_dim)
        assert read_keys.is_contiguous() and read_values.is_contiguous()
        expected = torch.cat(keys) + layer
        assert torch.equal(read_keys[:, :40], expected)
        assert torch.equal(read_values[:, :40], -expected)
        one = arena.units(layer, extents[1], 1)[0]
        assert torch.equal(one[:, :40], keys[1] + layer)


def test_parts_that_leave_their_extent_are_refused(model: Transformer) -> None:
    extent = Extent(0, 32)
    for part in (([1, 2], 31, extent), ([], 0, extent)):
        with pytest.raises(ValueError):
            RaggedBatch.build([part])
    assert RaggedBatch.build([([1, 2], 30, extent)]).positions.tolist() == [30, 31]
