"""Keys name a row's content and nothing else; sets of keys answer like Python's."""

from __future__ import annotations

import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.keys import KeySet, as_keys, row_key

IDS = st.one_of(st.integers(-(2**63), 2**64 - 1), st.text(max_size=5))
# Few distinct halves, so that equal high halves with different low ones occur.
DIGESTS = st.tuples(st.integers(0, 2), st.integers(0, 3)).map(
    lambda p: p[0].to_bytes(8, "big") + p[1].to_bytes(8, "big")
)


@given(IDS, IDS, st.none() | st.text(max_size=5), st.none() | st.text(max_size=5))
def test_row_keys_are_equal_only_for_equal_rows(
    one: int | str, two: int | str, first: str | None, second: str | None
) -> None:
    same = (type(one), one, first) == (type(two), two, second)
    assert (row_key(one, first) == row_key(two, second)) == same


def test_parameters_belong_to_the_row() -> None:
    assert row_key(1, "p") != row_key(1, "p", "{}")


def test_row_keys_do_not_change_between_versions() -> None:
    """Keys are in users' outputs and name their noise: another hash would redo every row."""
    assert row_key("r1", "Hello").hex() == "4d2f993c08ca579cbcb785609b7e081b"


@given(st.lists(DIGESTS), st.lists(DIGESTS))
def test_key_sets_answer_like_sets(members: list[bytes], asked: list[bytes]) -> None:
    keys = KeySet.of([as_keys(members[:3]), as_keys(members[3:])])
    assert keys.contains(as_keys(asked)).tolist() == [k in set(members) for k in asked]
    repeated = {k for k in members if members.count(k) > 1}
    assert {int(h).to_bytes(8, "big") + int(w).to_bytes(8, "big") for h, w in keys.repeated()} == (
        repeated
    )
    assert len(keys) == len(members)


def test_key_sets_take_16_bytes_a_key_and_travel() -> None:
    keys = KeySet.of([np.random.default_rng(0).integers(0, 2**63, (1000, 2)).astype(np.uint64)])
    assert keys.high.nbytes + keys.low.nbytes == 16_000
    again = pickle.loads(pickle.dumps(keys))
    assert again.contains(np.stack([keys.high, keys.low], axis=1)).all()
