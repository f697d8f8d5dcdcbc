"""A run after its checks: everything that can be wrong with it, short of its rows, is ruled out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, get_args

import pyarrow as pa

from admg.checkpoint import load_dtype
from pipeline.config import Dtype, RunConfig
from pipeline.factory import EngineFactory, ModelFactory
from pipeline.fingerprint import Fingerprint, fingerprint
from pipeline.ledger import check_same_job, fingerprint_of
from pipeline.names import SUFFIX, FileName
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

    What is left open (the dtype "auto", the day that a chat template is told) an output that is
    gone on with has settled.

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
    begun = _begun_with(store)
    if config.dtype == "auto" and begun.get("dtype") in get_args(Dtype):
        config, factory = _with_dtype(config, factory, begun["dtype"])
    date = None
    if config.prompt.mode == "chat" and isinstance(factory, ModelFactory) and factory.is_dated():
        date = begun.get("prompt.date") or _today()
        factory = replace(factory, date=date)
    whole = replace(config, engine=replace(config.engine, max_model_len=context))
    identity = fingerprint(whole, factory.identity(), date)
    check_same_job(store, identity)
    return Job(config, factory, identity, source, schema, store, limit)


def settled(job: Job, gpus: float) -> Job:
    """The job of an output that is begun now, with the dtype that "auto" is.

    It is chosen once, for all actors and all runs to come, whatever their CPUs are good at: by
    whether actors have GPUs, and for CPUs by this machine's.
    """
    if job.config.dtype != "auto":
        return job
    dtype = str(load_dtype("auto", "cuda" if gpus else "cpu")).removeprefix("torch.")
    config, factory = _with_dtype(job.config, job.factory, dtype)
    known = Fingerprint({**job.fingerprint.fields, "dtype": dtype})
    return replace(job, config=config, factory=factory, fingerprint=known)


def _with_dtype(
    config: RunConfig, factory: EngineFactory, dtype: Any
) -> tuple[RunConfig, EngineFactory]:
    if isinstance(factory, ModelFactory):
        factory = replace(factory, dtype=dtype)
    return replace(config, dtype=dtype), factory


def _begun_with(store: Store) -> Mapping[str, Any]:
    """The settings, by name, that an output's files were made with; none where there are none."""
    name = next((name for name in store.names(SUFFIX) if FileName.parse(name)), None)
    return {} if name is None else fingerprint_of(store, name).fields


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _check_apart(config: RunConfig, store: Store) -> None:
    """Results inside an input would be the next run's input, inputs inside the output results."""
    for given in config.input:
        place = store.trying(f"looking for {given}", partial(locate, given))
        if place.meets(store.filesystem, store.root):
            raise ValueError(
                f"output is {config.output!r}: it must lie outside of the input {given!r}, and the "
                "input outside of it"
            )
