"""128-bit keys of rows, and sorted sets of keys (those of ids are in `key_columns`).

The row key names a row's content: id, prompt and per-row parameters. It says what is committed,
names files and is the key of the row's noise, so it must never depend on order, shard, block or
machine. Job-wide settings are kept apart by the fingerprint: an output holds one fingerprint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

KEY_BYTES = 16
Keys = npt.NDArray[np.uint64]
"""Keys as an array [N, 2]: the high and the low half."""


def _id_bytes(row_id: int | str) -> bytes:
    # The type is part of the key: 7 and "7" are different ids.
    return b"i%d" % row_id if isinstance(row_id, int) else b"s" + row_id.encode()


def row_key(row_id: int | str, prompt: str | None, parameters: str = "") -> bytes:
    """The key of a row: its id, its prompt (None where it has none) and its own parameters."""
    return row_keys([row_id], [prompt], [parameters])[0]


def row_keys(
    ids: Sequence[int | str], prompts: Sequence[str | None], parameters: Sequence[str]
) -> list[bytes]:
    """The keys of rows. Copying a begun digest and one update are what makes it quick."""
    begun = hashlib.blake2b(digest_size=KEY_BYTES, person=b"admg-row")
    keys = []
    for row_id, prompt, own in zip(ids, prompts, parameters, strict=True):
        digest = begun.copy()
        digest.update(_content(_id_bytes(row_id), prompt, own))
        keys.append(digest.digest())
    return keys


def _content(row_id: bytes, prompt: str | None, parameters: str) -> bytes:
    # Lengths in front keep ("a", "bc") apart from ("ab", "c").
    own = parameters.encode()
    if prompt is None:
        return b"%d:%b-%d:%b" % (len(row_id), row_id, len(own), own)
    text = prompt.encode()
    return b"%d:%b%d:%b%d:%b" % (len(row_id), row_id, len(text), text, len(own), own)


def as_keys(keys: Sequence[bytes]) -> Keys:
    """Digests as an array [N, 2] whose order is the order of the bytes."""
    raw = np.frombuffer(b"".join(keys), dtype=">u8")
    return raw.astype(np.uint64).reshape(-1, 2)


@dataclass(frozen=True, slots=True)
class KeySet:
    """A set of keys as sorted arrays: 16 bytes a key, shared between processes without copies.

    The memory is 1.6 GB for 10^8 rows.
    """

    high: npt.NDArray[np.uint64]
    low: npt.NDArray[np.uint64]

    @classmethod
    def of(cls, parts: Iterable[Keys]) -> KeySet:
        """The set of all keys in `parts`; keys given several times are kept several times."""
        arrays = list(parts)
        keys = np.concatenate(arrays) if arrays else np.empty((0, 2), np.uint64)
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        return cls(keys[order, 0], keys[order, 1])

    def __len__(self) -> int:
        return len(self.high)

    def contains(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """For each of `keys` whether it is in the set."""
        first = np.searchsorted(self.high, keys[:, 0], side="left")
        last = np.searchsorted(self.high, keys[:, 0], side="right")
        found = np.zeros(len(keys), dtype=np.bool_)
        single = last - first == 1
        found[single] = self.low[first[single]] == keys[single, 1]
        # Equal high halves are either one key several times or a 2^-64 accident.
        for i in np.flatnonzero(last - first > 1):
            found[i] = bool(np.any(self.low[first[i] : last[i]] == keys[i, 1]))
        return found

    def repeated(self) -> Keys:
        """The keys that are in the set more than once, each once."""
        same = (self.high[1:] == self.high[:-1]) & (self.low[1:] == self.low[:-1])
        again = np.stack([self.high[1:][same], self.low[1:][same]], axis=1)
        return np.unique(again, axis=0)
