"""A run after its checks: everything that can be wrong with it, short of its rows, is ruled out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from pipeline.config import RunConfig
from pipeline.factory import EngineFactory
from pipeline.fingerprint import Fingerprint, fingerprint
from pipeline.ledger import check_same_job
from pipeline.places import locate
from pipeline.retry import Patience
from pipeline.schema import output_schema
from pipeline.source import Source, open_source
from pipeline.storage import Store


@dataclass(frozen=True, slots=True)
class Job:
    """What decoding needs to know. `limit` is the longest prompt in tokens (None: no limit)."""

    config: RunConfig
    factory: EngineFactory
    fingerprint: Fingerprint
    source: Source
    schema: pa.Schema
    store: Store
    limit: int | None


def check_job(config: RunConfig, factory: EngineFactory) -> Job:
    """Check input, model and output, in this order: the cheapest mistakes are found first.

    Raises:
        ValueError: a user's mistake, in one sentence.
    """
    store = Store(config.output, patience=Patience(config.storage_patience_seconds))
    _check_apart(config, store)
    source = open_source(config)
    schema = output_schema(source.schema, config.id_column, config.keep)
    context = factory.check()
    limit = None if context is None else context - config.sampling.max_tokens
    if limit is not None and limit < 1:
        raise ValueError(
            f"max_tokens is {config.sampling.max_tokens}: it must leave room for a prompt in the "
            f"model's {context} tokens"
        )
    identity = fingerprint(config, factory.identity())
    check_same_job(store, identity)
    return Job(config, factory, identity, source, schema, store, limit)


def _check_apart(config: RunConfig, store: Store) -> None:
    """Results inside an input would be the next run's input, inputs inside the output results."""
    for given in config.input:
        place = store.trying(f"looking for {given}", partial(locate, given))
        if place.meets(store.filesystem, store.root):
            raise ValueError(
                f"output is {config.output!r}: it must lie outside of the input {given!r}, and the "
                "input outside of it"
            )
