"""What is read of a file of weights to know it by: a little of each of its tensors.

Tuning may change norms or biases alone, or one matrix of hundreds, so places that are chosen by
the file's size would miss it. A few rows in the midst of a large tensor, changed by hand, are not
seen: only reading all of it would tell.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

Opener = Callable[[], IO[Any]]
Span = tuple[int, int]

# Of a tensor are read: all of it, or its beginning, its middle and its end. Norms and biases are
# small enough for the former.
_WHOLE, _PART = 64 * 2**10, 4096
# Between tensors that are neighbours: the end of one and the beginning of the next are one request.
_APART = 16 * 2**10
# Of a file whose tensors are not known.
_PLACES = 32
# Most headers are in the first read. Longer than the last they are in no safetensors file.
_FIRST_READ, _LONGEST_HEADER = 64 * 2**10, 100 * 2**20


def spans_of(opener: Opener) -> tuple[int, list[Span]]:
    """The size of a file, and the beginnings and ends of what to read of it, in their order."""
    with opener() as stream:
        size = stream.seek(0, os.SEEK_END)
        tensors = _tensors(stream, size)
    if tensors is None:
        last = max(0, size - _PART)
        starts = (last * i // (_PLACES - 1) for i in range(_PLACES))
        return size, [(start, min(size, start + _PART)) for start in starts]
    # What stands before the first tensor is the header: names, shapes and places.
    begin = tensors[0][0]
    return size, _joined([(0, begin), *(part for tensor in tensors for part in _parts(*tensor))])


def read_spans(opener: Opener, spans: Sequence[Span]) -> list[bytes]:
    """The bytes of these spans of a file."""
    found = []
    with opener() as stream:
        for start, end in spans:
            stream.seek(start)
            found.append(bytes(stream.read(end - start)))
    return found


def _tensors(stream: IO[Any], size: int) -> list[Span] | None:
    """Where the tensors of a safetensors file stand; None if it is no such file."""
    stream.seek(0)
    first = bytes(stream.read(_FIRST_READ))
    begin = 8 + int.from_bytes(first[:8], "little")
    if len(first) < 8 or begin > min(size, _LONGEST_HEADER):
        return None
    header = first[8:begin] + bytes(stream.read(max(0, begin - len(first))))
    try:
        described = json.loads(header)
        offsets = [t["data_offsets"] for name, t in described.items() if name != "__metadata__"]
        found = sorted((begin + int(start), begin + int(end)) for start, end in offsets)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    ends = [begin, *(end for _, end in found), size]
    fit = all(begin <= start <= end for start, end in found) and sorted(ends) == ends
    return found if found and fit and ends[-2] == size else None


def _parts(start: int, end: int) -> Iterator[Span]:
    if end - start <= _WHOLE:
        yield start, end
        return
    for place in (start, (start + end - _PART) // 2, end - _PART):
        yield place, place + _PART


def _joined(spans: Sequence[Span]) -> list[Span]:
    """The spans in their order, those that are close as one with what is between them."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1] + _APART:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((start, end))
    return joined
