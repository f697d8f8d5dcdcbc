"""The invariants of batched speculative decoding, as checks that tests switch on.

I1-I7 are numbered as in the project's test plan: they name the ways in which public batched
implementations went wrong (arXiv 2510.22876): positions that drift by rejected tokens, masks
derived from token ids, rows that share or lose slots.
"""

from __future__ import annotations

from admg.drafters.draft import Draft
from admg.kv_arena import KVArena
from admg.sequence import Sequence


def check_round(sequences: list[Sequence], draft: Draft, arena: KVArena, keep_laws: bool) -> None:
    """Raise AssertionError, with the numbers, where the state before a verification is broken."""
    arena.check()  # I7: slots have exactly one owner
    edge = -1
    for s, drafted, laws in zip(sequences, draft.tokens, draft.laws, strict=True):
        n = len(s.tokens)
        # I1: all but the last committed token are in the cache, in every layer.
        assert s.computed == n - 1, f"sequence {s.handle}: {s.computed} computed of {n} tokens"
        # I2, I3, I4: the pass covers positions n-1 .. n-1+K of this extent; what lies beyond was
        # never visible, because keys are visible by position and position is slot.
        last = n - 1 + len(drafted)
        assert last < s.extent.capacity, f"sequence {s.handle}: slot {last} is past {s.extent}"
        assert s.extent.start >= edge, f"sequence {s.handle}: extents out of order"
        edge = s.extent.end
        # I5: one law per drafted token, where laws are kept.
        if keep_laws:
            assert len(laws) == len(drafted), f"{len(laws)} laws for {len(drafted)} draft tokens"
        # I6: nobody drafts past what it may still commit, and nobody finished is still here.
        assert s.remaining > 0, f"sequence {s.handle} is finished and still runs"
        assert len(drafted) < s.remaining or not drafted, f"sequence {s.handle} drafts too far"


def check_commit(sequence: Sequence) -> None:
    """Raise AssertionError unless the cache again lags by exactly the last committed token (I1)."""
    n = len(sequence.tokens)
    assert sequence.computed == n - 1, f"{sequence.computed} computed of {n} committed tokens"
