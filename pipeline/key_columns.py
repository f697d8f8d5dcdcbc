"""Keys of whole columns at once: no Python for each row, so 10^8 rows take seconds, not hours.

Row keys are stored in the output and only have to be viewed as numbers. The key of an id is made
anew from the id wherever it is needed: two 64-bit lanes over its 8-byte words, each a chain of
bijections (xor, odd multiplication, xor-shift). It is compared, never stored, so it may change.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt

from pipeline.keys import KEY_BYTES, Keys

_U64 = np.uint64
# Odd constants of splitmix64 and murmur3; the seeds are fractional digits of pi.
_LANES = (
    (_U64(0x243F6A8885A308D3), _U64(0xBF58476D1CE4E5B9), _U64(0x94D049BB133111EB)),
    (_U64(0x13198A2E03707344), _U64(0xFF51AFD7ED558CCD), _U64(0xC4CEB9FE1A85EC53)),
)
_TEXT, _NUMBER, _NEGATIVE = _U64(1), _U64(2), _U64(3)

_Words = npt.NDArray[np.uint64]


def stored_keys(column: pa.ChunkedArray) -> Keys:
    """A column of 16-byte keys as an array [N, 2] in the order of the bytes, see `as_keys`."""
    parts = [_raw_keys(chunk) for chunk in column.chunks]
    raw = np.concatenate(parts) if parts else np.empty((0, 2), ">u8")
    return raw.astype(np.uint64)


def _raw_keys(chunk: pa.Array) -> npt.NDArray[np.uint64]:
    values = np.frombuffer(chunk.buffers()[1] or b"", dtype=">u8")
    first = chunk.offset * KEY_BYTES // 8
    keys: Keys = values[first : first + len(chunk) * KEY_BYTES // 8].reshape(-1, 2)
    return keys


def id_keys(column: pa.ChunkedArray) -> Keys:
    """The keys of ids: text or integers, without nulls. 7 and "7" are different ids.

    Raises:
        ValueError: a column of another type, or with nulls.
    """
    if column.null_count:
        raise ValueError("ids must not be null")
    parts = [_keys_of(chunk) for chunk in column.chunks if len(chunk)]
    return np.concatenate(parts) if parts else np.empty((0, 2), np.uint64)


def _keys_of(chunk: pa.Array) -> Keys:
    kind = chunk.type
    if pt.is_dictionary(kind):
        keys: Keys = _keys_of(chunk.dictionary)[chunk.indices.to_numpy(zero_copy_only=False)]
        return keys
    if pt.is_integer(kind):
        numbers = chunk.to_numpy(zero_copy_only=False)
        tags = np.where(numbers < 0, _NEGATIVE, _NUMBER)
        wide = numbers.astype(np.uint64)  # wraps negative numbers; the tag keeps them apart
        lanes = [
            _step(_step(np.full(len(wide), seed), tags, a, b), wide, a, b) for seed, a, b in _LANES
        ]
        return np.stack(lanes, axis=1)
    if pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind):
        return _text_keys(chunk.cast(pa.large_string()).view(pa.large_binary()))
    raise ValueError(f"ids are of type {kind}: they must be integers or text")


def _text_keys(chunk: pa.Array) -> Keys:
    buffers = chunk.buffers()
    offsets = np.frombuffer(buffers[1], np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
    text = np.frombuffer(buffers[2] or b"", np.uint8)
    text = np.concatenate([text[offsets[0] : offsets[-1]], np.zeros(8, np.uint8)])
    starts, lengths = offsets[:-1] - offsets[0], np.diff(offsets)
    keys = np.empty((len(chunk), 2), np.uint64)
    for lane, (seed, a, b) in enumerate(_LANES):
        # The length comes first, so that zero bytes at a text's end count.
        keys[:, lane] = _step(np.full(len(chunk), seed ^ _TEXT), lengths.astype(np.uint64), a, b)
    active, done = np.flatnonzero(lengths > 0), 0
    while len(active):
        words = _words(text, starts[active] + done, lengths[active] - done)
        for lane, (_, a, b) in enumerate(_LANES):
            keys[active, lane] = _step(keys[active, lane], words, a, b)
        done += 8
        active = active[lengths[active] > done]
    return keys


def _words(
    text: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], left: npt.NDArray[np.int64]
) -> _Words:
    """The next eight bytes of each text as one number, zeros where it has ended."""
    places = np.arange(8)
    raw = text[starts[:, None] + places]
    raw[places >= left[:, None]] = 0
    words: _Words = raw.view("<u8")[:, 0].astype(np.uint64)
    return words


def _step(state: _Words, word: _Words, first: np.uint64, second: np.uint64) -> _Words:
    mixed = state ^ word
    mixed = (mixed ^ (mixed >> _U64(33))) * first
    mixed = (mixed ^ (mixed >> _U64(29))) * second
    return mixed ^ (mixed >> _U64(32))
