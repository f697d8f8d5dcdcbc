"""What a run would do, found out without writing anything: rows, tokens, hours."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from jobs.measured_sample import PROMPTS, Sample, measure
from pipeline.actors import actors_for
from pipeline.cluster import Cluster
from pipeline.config import RunConfig
from pipeline.errors import RowError
from pipeline.factory import EngineFactory, ModelFactory
from pipeline.job import Job, check_job
from pipeline.ledger import read_ledger
from pipeline.machine import usable_cores
from pipeline.manifest import read_manifest
from pipeline.prepare import prepare_rows
from pipeline.prompts import PromptEncoder
from pipeline.run import pending_chunks
from pipeline.source import ScannedChunk

if TYPE_CHECKING:
    from pipeline.keys import KeySet

_ROWS = 256
_CHUNKS = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """A run before it runs.

    Tokens and hours are estimates from `rows_tokenised` rows, `sample` and what earlier runs have
    left; None where there is nothing to estimate from. `basis` says in words what they rest on.
    """

    shards: int
    bad_shards: tuple[str, ...]
    rows: int
    rows_left: int
    rows_tokenised: int
    share_of_error_rows: float
    prompt_tokens_left: int | None
    completion_tokens_left: int | None
    actors: int
    gpus_per_actor: float
    hours: float | None
    gpu_hours: float | None
    basis: tuple[str, ...]
    sample: Sample | None

    def to_dict(self) -> dict[str, Any]:
        """The values by name, fit for JSON."""
        return asdict(self)


def make_plan(
    config: RunConfig, *, with_sample: bool = True, engine_factory: EngineFactory | None = None
) -> Plan:
    """Check everything that a run checks, and look at what it would do. Writes nothing.

    Raises:
        ValueError: what the run would refuse.
    """
    factory = engine_factory or ModelFactory.of(config)
    job = check_job(config, factory)
    scan = job.source.scan(config)
    ledger = read_ledger(job.store, config.id_column)
    done = ledger.done(config.retry_failed)
    pending = pending_chunks(job, scan.chunks, ledger, done)
    left = sum(rows for _, rows in pending)
    encoded = _encoded(job, _picked(job, [part for part, _ in pending], done.keys()))
    good = [ids for ids in encoded if not isinstance(ids, RowError)]
    sample = None
    if with_sample and good:
        size = min(config.engine.max_num_seqs, PROMPTS)
        sample = measure(factory, _spread(good, size), config.sampling)
    share = len(good) / len(encoded) if encoded else 1.0
    prompt = sum(map(len, good)) / len(good) if good else 0.0
    manifest = _manifest(job)
    completion, basis = _completion_tokens(config, sample, manifest)
    rows = left * share
    devices = _devices()
    machine = Cluster(usable_cores(), devices, not os.environ.get("RAY_ADDRESS"))
    gpus = config.gpus_per_actor if config.gpus_per_actor is not None else min(1.0, devices)
    actors = actors_for(config, factory, left, machine)
    share_cores = machine.local and not gpus
    paces = partial(_paces, config.threads) if share_cores else float
    tokens = rows * prompt, rows * completion
    hours, pace = _hours(config, actors, paces, sample, manifest, *tokens)
    return Plan(
        shards=len({part.chunk.shard for part in scan.chunks}),
        bad_shards=tuple(str(bad) for bad in scan.bad),
        rows=scan.rows,
        rows_left=left,
        rows_tokenised=len(encoded),
        share_of_error_rows=1 - share,
        prompt_tokens_left=round(rows * prompt),
        completion_tokens_left=round(rows * completion),
        actors=actors,
        gpus_per_actor=gpus,
        hours=hours,
        gpu_hours=None if hours is None else hours * actors * gpus,
        basis=(basis, pace) if left else (),
        sample=sample,
    )


def _manifest(job: Job) -> dict[str, Any]:
    try:
        return read_manifest(job.store.uri)
    except ValueError:  # there is none, or it is damaged, which the run itself says
        return {}


def _picked(job: Job, parts: Sequence[ScannedChunk], done: KeySet) -> Iterator[pa.Table]:
    """Rows still to do, taken evenly from some chunks."""
    chosen = _spread(parts, _CHUNKS)
    for part in chosen:
        rows = np.flatnonzero(~done.contains(part.keys))
        rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), _ROWS // len(chosen)), dtype=int)]
        first = 0
        for table in part.chunk.read(job.source.schema):
            here = rows[(rows >= first) & (rows < first + table.num_rows)] - first
            first += table.num_rows
            if len(here):
                yield table.take(pa.array(here))


def _encoded(job: Job, tables: Iterator[pa.Table]) -> list[list[int] | RowError]:
    config = job.config
    encoder: PromptEncoder | None = None
    found: list[list[int] | RowError] = []
    for table in tables:
        if encoder is None:
            chat = config.prompt.mode == "chat"
            tokenizer = job.factory.tokenizer()
            encoder = PromptEncoder(tokenizer, chat, config.prompt.on_long, job.limit)
        rows = prepare_rows(
            table, config.id_column, config.prompt, config.row_parameters, config.sampling
        )
        found += [prompt for prompt in rows.prompts if isinstance(prompt, RowError)]
        found += encoder.encode([p for p in rows.prompts if not isinstance(p, RowError)])
    return found


def _spread(values: Sequence[Any], count: int) -> list[Any]:
    places = np.linspace(0, len(values) - 1, min(len(values), count), dtype=int)
    return [values[int(i)] for i in places]


def _completion_tokens(
    config: RunConfig, sample: Sample | None, manifest: dict[str, Any]
) -> tuple[float, str]:
    """Tokens of a completion, and where that is known from."""
    totals = manifest.get("totals", {})
    if totals.get("rows_ok"):
        mean = totals["completion_tokens"] / totals["rows_ok"]
        return mean, f"completions of {mean:.1f} tokens, as in the rows of earlier runs"
    most = config.sampling.max_tokens
    if sample is not None and (sample.max_tokens >= most or sample.ended == sample.sequences):
        mean = sample.completion_tokens / sample.sequences
        return mean, f"completions of {mean:.1f} tokens, as in the sample"
    return most, f"completions of {most} tokens each, the most there can be (--max-tokens)"


def _hours(
    config: RunConfig,
    actors: int,
    paces: Callable[[int], float],
    sample: Sample | None,
    manifest: dict[str, Any],
    prompt_tokens: float,
    completion_tokens: float,
) -> tuple[float | None, str]:
    """Hours for so many tokens, and what the pace is known from.

    `paces` is how many times as fast as one engine so many actors are together.
    """
    if sample is not None and sample.decode_tokens_per_second:
        seconds = completion_tokens / sample.decode_tokens_per_second
        if sample.prefill_tokens_per_second:
            seconds += prompt_tokens / sample.prefill_tokens_per_second
        times = paces(actors)
        each = "" if times == 1 else f", {times:g} times for {actors} actors"
        pace = (
            f"the sample's pace{each}; another machine, or up to "
            f"{config.engine.max_num_seqs} sequences together, have another"
        )
        return seconds / times / 3600, pace
    last = manifest.get("run", {})
    speed = last.get("tokens_per_second")
    if speed:
        before = last.get("config", {}).get("actors") or actors
        speed *= paces(actors) / paces(before)
        pace = f"the {last['tokens_per_second']:.1f} tokens/s of the last run, of {before} actors"
        return completion_tokens / speed / 3600, pace
    return None, "no pace: there is no sample, and no earlier run of this output"


def _paces(threads: int | None, actors: int) -> float:
    """Actors on the CPUs of one machine, as many times an engine that has them for itself."""
    cores = usable_cores()
    each = threads or max(1, cores // actors)
    return min(actors * each, cores) / min(threads or cores, cores)


def _devices() -> int:
    import torch

    return torch.cuda.device_count()
