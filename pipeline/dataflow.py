"""The Ray Data pipeline: pending chunks -> Prepare -> Tokenize -> Decode -> Detokenize -> sink."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.data import ActorPoolStrategy, Dataset

from pipeline.attempts import Deaths, clear, fold, note_stop
from pipeline.cluster import Cluster, connected, data_context
from pipeline.config import RunConfig
from pipeline.decode import Decode
from pipeline.engine_loop import EngineDied
from pipeline.errors import PipelineError
from pipeline.factory import ModelFactory
from pipeline.job import Job
from pipeline.keys import KeySet, as_keys
from pipeline.ledger import Ledger
from pipeline.progress import Board, Counters, Tracker, Watch
from pipeline.quarantine import Rules
from pipeline.sink import CommittedFile, ResultSink
from pipeline.source import Chunk
from pipeline.stages import Detokenize, Prepare, Tokenize
from pipeline.survival import Safety

_ACTORS_PER_TOKENIZER = 4
# What runs beside Decode: reading with repartitioning takes one CPU (Ray fuses the two only with
# its own default), tokenizers and writing share another.
_LIGHT = 0.25
_CPUS_BESIDE_ACTORS = 2


@dataclass(frozen=True, slots=True)
class SharedKeys:
    """Committed keys in the object store: one copy a machine, without pickling."""

    ref: Any

    def __call__(self) -> KeySet:
        """The keys, mapped and not copied."""
        keys: KeySet = ray.get(self.ref)
        return keys


@dataclass(frozen=True, slots=True)
class SharedDeaths:
    """What earlier runs know of rows, in the object store."""

    ref: Any

    def __call__(self) -> dict[str, Deaths]:
        """Deaths by key."""
        deaths: dict[str, Deaths] = ray.get(self.ref)
        return deaths


@dataclass(frozen=True, slots=True)
class ToBoard:
    """An actor's way to the board."""

    board: Any

    def __call__(self, name: str, counters: Counters) -> None:
        """Fire and forget: a report that is lost is followed by another."""
        self.board.report.remote(name, counters)

    def others_work(self) -> bool:
        """Whether any actor has reported, which it does when its model is loaded."""
        return bool(ray.get(self.board.read.remote(), timeout=60).actors)


def decode(
    job: Job, chunks: Sequence[Chunk], ledger: Ledger, tracker: Tracker, reused: int
) -> list[CommittedFile]:
    """Decode and commit what is pending in these chunks.

    Raises:
        ValueError: the machine started here cannot hold the actors that are asked for.
        PipelineError: an engine died or a task failed for good; what is committed stays.
    """
    with connected(job.config.actors) as cluster, data_context(job.config.actors):
        gpus = gpus_per_actor(job.config, cluster)
        # Where actors would hold every CPU, reading and writing could never start.
        roomy = cluster.cpus >= job.config.actors + _CPUS_BESIDE_ACTORS
        cpus = 1.0 if roomy and not gpus else 0.0
        board = ray.remote(num_cpus=0)(Board).remote()
        committed = SharedKeys(ray.put(ledger.keys())) if ledger.rows else None
        to_board = ToBoard(board)
        safety = _safety(job, ledger, to_board)
        dataset = _dataset(job, chunks, (cpus, gpus), committed, to_board, safety)
        sink = ResultSink(job.store, job.fingerprint, job.schema)
        try:
            with Watch(board, tracker, reused):
                dataset.write_datasink(sink, ray_remote_args={"num_cpus": _LIGHT})
        except KeyboardInterrupt:
            note_stop(job.store, safety.run)
            raise
        except Exception as error:
            raise PipelineError(
                f"the run stopped: {reason_of(error)}. What is committed stays; run the same "
                "command again to go on"
            ) from error
    clear(job.store)
    return sink.files


def _safety(job: Job, ledger: Ledger, board: ToBoard) -> Safety:
    """What actors are told of the past, and of what to do when they die."""
    config, committed = job.config, ledger.keys()

    def is_done(key: str) -> bool:
        return bool(committed.contains(as_keys([bytes.fromhex(key)]))[0])

    rules = Rules(
        config.max_crashes,
        config.engine.max_num_seqs,
        config.row_deadline_seconds,
        config.token_deadline_seconds,
    )
    earlier = SharedDeaths(ray.put(fold(job.store, is_done)))
    return Safety(job.store, uuid.uuid4().hex[:12], rules, earlier, board.others_work)


def gpus_per_actor(config: RunConfig, cluster: Cluster) -> float:
    """GPUs for each actor: as configured, or one where there are any.

    Raises:
        ValueError: more than the local machine has. A cluster may still grow.
    """
    gpus = config.gpus_per_actor
    if gpus is None:
        gpus = 1.0 if cluster.gpus else 0.0
    if cluster.local and gpus * config.actors > cluster.gpus:
        raise ValueError(
            f"actors is {config.actors} with {gpus:g} GPUs each: it must fit the "
            f"{cluster.gpus:g} GPUs of this machine"
        )
    return gpus


def _dataset(
    job: Job,
    chunks: Sequence[Chunk],
    actor: tuple[float, float],
    committed: Callable[[], KeySet] | None,
    board: ToBoard,
    safety: Safety,
) -> Dataset:
    config, factory = job.config, job.factory
    cpus, gpus = actor
    if isinstance(factory, ModelFactory) and not gpus:
        factory = replace(factory, cpu_share=config.actors)
    rows, in_flight = config.rows_per_block, config.blocks_in_flight
    arrow: dict[str, Any] = {"batch_format": "pyarrow"}
    prepare = Prepare(config.id_column, config.keep, config.prompt, committed)
    return (
        job.source.dataset(chunks)
        .map_batches(prepare, batch_size=None, **arrow)
        .repartition(target_num_rows_per_block=rows)
        .map_batches(
            Tokenize,
            fn_constructor_args=(factory, config.prompt, job.limit),
            compute=ActorPoolStrategy(size=-(-config.actors // _ACTORS_PER_TOKENIZER)),
            batch_size=rows,
            num_cpus=_LIGHT if cpus else 0.0,
            **arrow,
        )
        .map_batches(
            Decode,
            fn_constructor_args=(factory, config.sampling, board, safety),
            compute=ActorPoolStrategy(
                size=config.actors,
                max_tasks_in_flight_per_actor=in_flight,
                max_concurrent_calls_per_actor=in_flight,
            ),
            batch_size=rows,
            num_gpus=gpus or None,
            num_cpus=cpus,
            **arrow,
        )
        .map_batches(Detokenize(factory, job.schema), batch_size=None, num_cpus=_LIGHT, **arrow)
    )


def reason_of(error: BaseException) -> str:
    """The innermost cause of what Ray raises, in one line."""
    chain = [error]
    for found in chain:
        for inner in (getattr(found, "cause", None), found.__cause__, found.__context__):
            if isinstance(inner, BaseException) and all(inner is not known for known in chain):
                chain.append(inner)
    for found in chain:
        # An actor that could not start is told of as a traceback in a message.
        if ours := re.search(r"EngineDied: (.*)", str(found)):
            return ours[1]
    # Ray wraps what happened in exceptions that say nothing, and adds advice below the first line.
    told = [found for found in chain if str(found).strip()] or chain
    text = (str(told[-1]).strip().splitlines() or ["no message"])[0]
    return text if isinstance(told[-1], EngineDied) else f"{type(told[-1]).__name__}: {text}"
