"""A sample of a job's prompts: rows taken evenly from its input, as the run would see them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa

from admg.request import Request
from pipeline.config import RunConfig
from pipeline.errors import RowError
from pipeline.factory import EngineFactory
from pipeline.prepare import prepare_rows
from pipeline.prompts import PromptEncoder
from pipeline.source import Source, open_source

_CHUNKS = 8
T = TypeVar("T")


def halves(items: Sequence[T]) -> tuple[list[T], list[T]]:
    """Every other item, to choose by, and the rest, to report on; a single one is both."""
    return list(items[::2]), list(items[1::2] or items)


@dataclass(frozen=True, slots=True)
class Sample:
    """Prompts as requests, their number's rows, and a digest of them all."""

    requests: tuple[Request, ...]
    skipped: int

    @property
    def digest(self) -> str:
        """The same for the same prompts under the same law."""
        text = json.dumps([r.prompt_token_ids for r in self.requests])
        text += repr(self.requests[0].sampling)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def mean_prompt(self) -> float:
        """Mean tokens of a prompt."""
        return sum(len(r.prompt_token_ids) for r in self.requests) / len(self.requests)


def take_sample(config: RunConfig, factory: EngineFactory, count: int) -> Sample:
    """Take `count` prompts of the input, or all where there are fewer.

    Rows that would be error rows are left out.

    Raises:
        ValueError: the input or the model cannot be used, or no row can.
    """
    context = factory.check()
    source = open_source(config)
    limit = None if context is None else context - config.sampling.max_tokens
    encoder = PromptEncoder(
        factory.tokenizer(), config.prompt.mode == "chat", config.prompt.on_long, limit
    )
    requests: list[Request] = []
    skipped = 0
    for table in _tables(source, count):
        rows = prepare_rows(table, config.id_column, config.prompt)
        good = [
            (str(i), p)
            for i, p in zip(rows.ids, rows.prompts, strict=True)
            if not isinstance(p, RowError)
        ]
        skipped += len(table) - len(good)
        for (key, _), ids in zip(good, encoder.encode([p for _, p in good]), strict=True):
            if isinstance(ids, RowError):
                skipped += 1
            else:
                requests.append(Request(ids, config.sampling, key))
    if not requests:
        raise ValueError(f"none of {skipped} rows of the input makes a prompt that can be decoded")
    return Sample(tuple(requests[:count]), skipped)


def _tables(source: Source, count: int) -> Iterator[pa.Table]:
    """Rows taken evenly from some chunks."""
    places = np.linspace(0, len(source.chunks) - 1, min(len(source.chunks), _CHUNKS), dtype=int)
    chunks = [source.chunks[i] for i in dict.fromkeys(places.tolist())]
    for number, chunk in enumerate(chunks):
        # Earlier chunks take what does not divide, and all rows where there are few.
        wanted = count // len(chunks) + (number < count % len(chunks))
        wanted = min(chunk.rows, max(wanted, 1))
        rows = np.linspace(0, chunk.rows - 1, wanted, dtype=int)
        first = 0
        for table in chunk.read(source.schema):
            here = rows[(rows >= first) & (rows < first + table.num_rows)] - first
            first += table.num_rows
            if len(here):
                yield table.take(pa.array(here))
