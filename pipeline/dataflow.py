"""The Ray Data pipeline: pending chunks -> Prepare -> Tokenize -> Decode -> Detokenize -> sink."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.data import ActorPoolStrategy, Dataset, TaskPoolStrategy
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.apart import TokenizeApart
from pipeline.audit import Audit
from pipeline.blocks import measured_speed
from pipeline.choices import Choices
from pipeline.chunks import Chunk
from pipeline.cluster import Cluster, data_context
from pipeline.counters import Board
from pipeline.dealing import Dealing
from pipeline.decode import Decode
from pipeline.errors import PipelineError
from pipeline.factory import ModelFactory
from pipeline.history import clear, fold, note_stop
from pipeline.job import Job
from pipeline.keys import KeySet, as_keys
from pipeline.layout import LIGHT, Layout, layout_of, patience
from pipeline.ledger import Ledger, read_ledger
from pipeline.oversight import Oversight
from pipeline.prepare import Prepare
from pipeline.progress import Tracker, Watch, ratio
from pipeline.quarantine import Rules
from pipeline.reasons import is_shrunk, is_stalled, is_without_device, reason_of
from pipeline.shared import Shared, ToBoard
from pipeline.sink import CommittedFile, ResultSink
from pipeline.source import ScannedChunk
from pipeline.stages import Detokenize
from pipeline.survival import Safety

_LAUNCHES = 5
# A machine that is replaced comes back within this. The other actors work meanwhile.
_GRACE_SECONDS = 600.0
# Tokens that a prompt may have where the model sets no limit.
_LONG_PROMPT = 32768


def decode(
    job: Job,
    cluster: Cluster,
    actors: int,
    pending: Sequence[tuple[ScannedChunk, int]],
    ledger: Ledger,
    tracker: Tracker,
    reused: int,
    begin: Callable[[], None],
) -> float:
    """Decode and commit what is pending: chunks, each with how many of its rows are to do.

    `begin` is called when nothing stands against that any more. A cluster that loses machines or
    GPUs for good makes the run start the rest again on what is left.

    Returns:
        Tokens per second, from the first loaded model on and since the last such start.

    Raises:
        ValueError: the machine started here cannot hold the actors that are asked for.
        PipelineError: a model does not load, or a task failed for good; what is committed stays.
    """
    chunks, rows = [part.chunk for part, _ in pending], sum(rows for _, rows in pending)
    tokens = _most_tokens(job, [part for part, _ in pending])
    measured, choices = measured_speed(job.store), Choices(job.store)
    known = ledger  # of rows that are tried again nothing is remembered but what comes from now on
    ledger = ledger.done(job.config.retry_failed)
    launched = 1
    while True:
        layout = layout_of(job.config, rows, cluster, actors, launched > 1, measured, tokens)
        if launched == 1:
            begin()
        board = _board(layout.actors)
        safety = _safety(job, known, board)
        try:
            before = tracker.decoding_seconds
            stall = patience(job.config, safety.rules.deadline(job.limit or _LONG_PROMPT, tokens))
            files = _execute(job, chunks, ledger, layout, board, safety, tracker, reused, stall)
            break
        except KeyboardInterrupt:
            note_stop(job.store, safety.run)
            raise
        except Exception as error:
            if not is_stalled(error):  # else a row may be the reason
                note_stop(job.store, safety.run)
            if launched == _LAUNCHES or not _has_others(error, board):
                raise PipelineError(
                    f"the run stopped: {reason_of(error)}. What is committed stays; run the "
                    "same command again to go on"
                ) from error
        finally:
            choices.keep(board.explanations())
        launched += 1
        earlier = ledger.rows
        known = ledger = read_ledger(job.store, job.config.id_column).done(job.config.retry_failed)
        rows -= ledger.rows - earlier
        cluster = Cluster.now(cluster.local)
    clear(job.store)
    made = sum(file.completion_tokens for file in files)
    return ratio(made, tracker.decoding_seconds - before) or 0.0


def _most_tokens(job: Job, parts: Sequence[ScannedChunk]) -> int:
    """The longest completion that a row may have; one that asks for more than fits is an error."""
    usual = job.config.sampling.max_tokens
    most = max([usual, *(part.most_tokens for part in parts)])
    return most if job.limit is None else min(most, job.limit + usual)


def _board(actors: int) -> ToBoard:
    """A board on the driver's machine, for no other machine's end must take it; it comes back."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(num_cpus=0, max_restarts=-1)(Board)
    return ToBoard(board.options(scheduling_strategy=here).remote(actors))


def _has_others(error: Exception, board: ToBoard) -> bool:
    """Whether the rest can go on elsewhere: machines are left, or actors that may have a GPU."""
    return is_shrunk(error) or (is_without_device(error) and board.others_left())


def _execute(
    job: Job,
    chunks: Sequence[Chunk],
    ledger: Ledger,
    layout: Layout,
    board: ToBoard,
    safety: Safety,
    tracker: Tracker,
    reused: int,
    stall: float,
) -> list[CommittedFile]:
    """One execution of the dataset."""
    oversight = Oversight(stall, min(_GRACE_SECONDS, stall), layout.needs)
    committed = Shared.of(ledger.keys()) if ledger.rows else None
    sink = ResultSink(job.store, job.fingerprint, job.schema)
    with data_context(layout.actors, oversight):
        dataset = _dataset(job, chunks, layout, committed, board, safety)
        with Watch(board.board, tracker, reused, oversight.tell):
            # As many as Detokenize has: else Ray would not do both in one task.
            dataset.write_datasink(
                sink, ray_remote_args={"num_cpus": LIGHT}, concurrency=layout.writers
            )
    return sink.files


def _safety(job: Job, known: Ledger, board: ToBoard) -> Safety:
    """What actors are told of the past, and of what to do when they die."""
    config, committed = job.config, known.keys()

    def is_done(key: str) -> bool:
        return bool(committed.contains(as_keys([bytes.fromhex(key)]))[0])

    rules = Rules(
        config.max_crashes,
        config.engine.max_num_seqs,
        config.row_deadline_seconds,
        config.token_deadline_seconds,
    )
    earlier = Shared.of(fold(job.store, is_done))
    return Safety(job.store, uuid.uuid4().hex[:12], rules, earlier, board)


def _dataset(
    job: Job,
    chunks: Sequence[Chunk],
    layout: Layout,
    committed: Callable[[], KeySet] | None,
    board: ToBoard,
    safety: Safety,
) -> Dataset:
    config, factory = job.config, job.factory
    if isinstance(factory, ModelFactory):
        share = None if layout.gpus else layout.actors
        factory = replace(factory, cpu_share=share, gpus=layout.gpus)
    arrow: dict[str, Any] = {"batch_format": "pyarrow"}
    parameters, law = config.row_parameters, config.sampling
    prepare = Prepare(
        config.id_column, config.keep, config.prompt, committed, parameters, sampling=law
    )
    return (
        job.source.dataset(chunks, config.allow_bad_shards)
        .map_batches(prepare, batch_size=None, **arrow)
        .map_batches(Dealing(layout.actors, layout.held), batch_size=None, **arrow)
        .repartition(target_num_rows_per_block=layout.rows_per_call)
        .map_batches(
            TokenizeApart,
            fn_constructor_args=(factory, config.prompt, job.limit, law),
            compute=ActorPoolStrategy(size=layout.tokenizers),
            batch_size=layout.rows_per_call,
            num_cpus=LIGHT if layout.cpus else 0.0,
            **arrow,
        )
        .map_batches(
            Decode,
            fn_constructor_args=(factory, law, board, safety, Audit.of(config), board.explain),
            compute=ActorPoolStrategy(
                size=layout.actors,
                max_tasks_in_flight_per_actor=layout.in_flight,
                max_concurrent_calls_per_actor=layout.in_flight,
            ),
            batch_size=layout.rows_per_call,
            num_gpus=layout.gpus or None,
            num_cpus=layout.cpus,
            **arrow,
        )
        .map_batches(
            Detokenize(factory, job.schema),
            compute=TaskPoolStrategy(layout.writers),
            # Rows wait for others only where a call has less than a block.
            batch_size=layout.rows_per_block if layout.gathers else None,
            num_cpus=LIGHT,
            **arrow,
        )
    )
