"""Keys of whole columns: equal for equal ids alone, whatever their type, chunk or neighbours."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.key_columns import id_keys, stored_keys
from pipeline.keys import as_keys, row_key

TEXTS = st.lists(st.text(max_size=30), min_size=1, max_size=20)
NUMBERS = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20)


def hexes(values: list[object], kind: pa.DataType) -> list[str]:
    keys = id_keys(pa.chunked_array([pa.array(values, kind)]))
    return [row.tobytes().hex() for row in keys]


@given(TEXTS | NUMBERS, st.data())
def test_equal_ids_have_equal_keys_and_others_do_not(
    values: list[object], data: st.DataObject
) -> None:
    text = isinstance(values[0], str)
    found = hexes(values, pa.string() if text else pa.int64())
    assert len(set(found)) == len(set(values))
    assert dict(zip(values, found, strict=True)) == {v: found[values.index(v)] for v in values}
    cut = data.draw(st.integers(0, len(values)))
    kinds = [pa.large_string(), pa.string_view()] if text else [pa.int64()]
    for kind in kinds:
        whole = pa.array(values, kind)
        parts = pa.chunked_array([whole.slice(0, cut), whole.slice(cut)], kind)
        assert [row.tobytes().hex() for row in id_keys(parts)] == found
    coded = pa.chunked_array([pa.array(values).dictionary_encode()])
    assert [row.tobytes().hex() for row in id_keys(coded)] == found


def test_types_and_zero_bytes_count() -> None:
    keys = [
        *hexes(["7", "7\0", "", "\0", "\0\0", "00000000", "0000000", "000000000"], pa.string()),
        *hexes([7, -7, 0, -1], pa.int64()),
        *hexes([2**64 - 1, 2**64 - 7], pa.uint64()),
    ]
    assert len(set(keys)) == len(keys)
    assert hexes([7], pa.int64()) == hexes([7], pa.uint64())


def test_a_million_regular_ids_do_not_collide_in_either_half() -> None:
    """By the birthday bound a good hash of 64 bits does so once in 4 * 10^7 tries."""
    texts = pa.array([f"2026-11-{i % 30:02}/doc-{i:09}" for i in range(500_000)])
    for column in (texts, pa.array(np.arange(500_000, dtype=np.int64) << 20)):
        keys = id_keys(pa.chunked_array([column]))
        for half in (0, 1):
            assert len(np.unique(keys[:, half])) == len(column)
        assert len(np.unique(keys[:, 0] ^ keys[:, 1])) == len(column)


def test_every_bit_of_an_id_reaches_every_bit_of_its_key() -> None:
    """Each of 128 output bits flips in 30 to 70 % of cases (6 sigma at 256 draws is 31 to 69 %)."""
    drawn = np.random.default_rng(3).integers(0, 2**63, 256).astype(np.int64)
    base = id_keys(pa.chunked_array([pa.array(drawn)]))
    for bit in (0, 17, 40, 62):
        flipped = id_keys(pa.chunked_array([pa.array(drawn ^ np.int64(1 << bit))]))
        share = np.unpackbits((base ^ flipped).view(np.uint8), axis=1).mean(axis=0)
        assert share.min() > 0.3
        assert share.max() < 0.7


@settings(max_examples=30)
@given(st.lists(st.binary(min_size=16, max_size=16), max_size=8), st.integers(0, 8))
def test_stored_keys_are_the_bytes_in_their_order(keys: list[bytes], cut: int) -> None:
    whole = pa.array(keys, pa.binary(16))
    column = pa.chunked_array([whole.slice(0, cut), whole.slice(cut)], pa.binary(16))
    assert stored_keys(column).tolist() == as_keys(keys).tolist()


@pytest.mark.parametrize("column", [pa.array([1.5]), pa.array([b"x"]), pa.array(["x", None])])
def test_what_is_no_id_is_refused(column: pa.Array) -> None:
    with pytest.raises(ValueError, match=r"ids (are of type|must not be null)"):
        id_keys(pa.chunked_array([column]))


def test_keys_of_rows_are_stored_as_they_are() -> None:
    key = row_key("a", "p")
    assert stored_keys(pa.chunked_array([pa.array([key], pa.binary(16))]))[0].tolist() == [
        int.from_bytes(key[:8], "big"),
        int.from_bytes(key[8:], "big"),
    ]
