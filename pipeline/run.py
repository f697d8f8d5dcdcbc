"""One run: check, leave out what is committed, decode the rest, and prove that all is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pyarrow as pa

from pipeline.actors import actors_for
from pipeline.cluster import connected
from pipeline.config import RunConfig
from pipeline.dataflow import decode
from pipeline.errors import PipelineError
from pipeline.factory import EngineFactory, ModelFactory
from pipeline.finish import finish
from pipeline.heartbeat import beating
from pipeline.job import Job, check_job, settled
from pipeline.layout import gpus_per_actor
from pipeline.lease import Lease, LeaseTimes, hold
from pipeline.ledger import Ledger, check_same_job, common_schema, read_ledger
from pipeline.manifest import ORDER, SUCCESS, depended_on_order, warn_of_lost_files, write_run
from pipeline.progress import Progress, Tracker
from pipeline.retry import one_line
from pipeline.shards import BadShard
from pipeline.source import Scan, ScannedChunk
from pipeline.threads import over_threads


@dataclass(frozen=True, slots=True)
class RunReport:
    """The end of a run. Rows, tokens and ratios are those of the whole output.

    `rows_reused` were committed by earlier runs, and so were `rows_not_in_input`, which stay though
    the input has them no longer; `seconds` and `tokens_per_second` are this run's, the latter over
    the time since the first model was loaded (0 where nothing was decoded). `bad_shards` say, a
    sentence each, what was left out.
    """

    rows_total: int
    rows_ok: int
    rows_error: int
    rows_reused: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    tokens_per_second: float
    mean_acceptance_length: float | None
    draft_acceptance_rate: float | None
    speedup: float | None
    speedup_end_to_end: float | None
    errors_by_code: dict[str, int]
    output: str
    bad_shards: tuple[str, ...] = ()
    rows_not_in_input: int = 0


def run(
    config: RunConfig,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    engine_factory: EngineFactory | None = None,
    lease_times: LeaseTimes | None = None,
) -> RunReport:
    """Decode every input row that the output does not hold yet.

    `on_progress` is called from this thread and from another one, never from both at once.

    Raises:
        ValueError: a user's mistake, before any model is loaded.
        Locked: another run works on the output.
        PipelineError: the run ended early; what is committed stays.
        KeyboardInterrupt: passed through; what is committed stays.
    """
    started = _now()
    tracker = Tracker(on_progress)
    tracker.phase("checking")
    job = check_job(config, engine_factory or ModelFactory.of(config))
    scan = job.source.scan(config)
    with hold(job.store, lease_times) as lease, beating(lease, job.fingerprint, tracker):
        return _run(replace(job, store=lease.store), scan, lease, tracker, started)


class _Start:
    """The moment from which on the output changes; until then a mistake leaves it as it is."""

    def __init__(self, started: str, order: bool) -> None:
        self._started = started
        self._order = order
        self._begun = False

    def begin(self, job: Job) -> None:
        """What follows makes the output incomplete again, whatever an earlier run has said."""
        self._begun = True
        job.store.delete(SUCCESS)
        write_run(job.store, job.config, job.fingerprint, self._started, order=self._order)

    @contextmanager
    def no_mistakes_after(self) -> Iterator[None]:
        """Once it has begun, a run ends early: what was wrong is no reason to start anew.

        Raises:
            PipelineError: for every `ValueError` after the beginning.
        """
        try:
            yield
        except ValueError as error:
            if not self._begun:
                raise
            raise PipelineError(
                f"the run stopped: {one_line(error)}. What is committed stays"
            ) from error


def _run(job: Job, scan: Scan, lease: Lease, tracker: Tracker, started: str) -> RunReport:
    config = job.config
    check_same_job(job.store, job.fingerprint)  # again: another run may have come in between
    ledger = read_ledger(job.store, config.id_column)
    job = replace(job, schema=common_schema(job.store, ledger, job.schema))
    warn_of_lost_files(job.store, ledger)
    done = ledger.done(config.retry_failed)
    pending = pending_chunks(job, scan.chunks, ledger, done)
    _check_fits(job, [part for part, _ in pending])
    total = scan.rows
    todo = sum(rows for _, rows in pending)
    tracker.phase("starting", rows_total=total, rows_done=total - todo)
    speed, actors = 0.0, actors_for(config, job.factory, todo)
    order = config.engine.draft.order_dependent
    order = order or (todo < total and depended_on_order(job.store))
    start = _Start(started, order)
    with start.no_mistakes_after():
        if pending:
            with connected(actors) as cluster:
                actors = actors_for(config, job.factory, todo, cluster)
                if not ledger.rows:
                    job = settled(job, gpus_per_actor(config, cluster, actors))
                begin = partial(start.begin, job)
                done_before = total - todo
                speed = decode(job, cluster, actors, pending, ledger, tracker, done_before, begin)
            if config.allow_bad_shards:
                scan = scan.without_lost(part.chunk for part, _ in pending)
                total = scan.rows
        del ledger, done  # gigabytes where rows are many; the end reads what is there by then
        tracker.phase("finishing", rows_done=total)
        facts: dict[str, Any] = {
            "started": started,
            "input": list(config.input),
            "rows_input": total,
            "rows_reused": total - todo,
            "rows_decoded": todo,
            "bad_shards": [{"path": bad.path, "reason": str(bad)} for bad in scan.bad],
            "tokens_per_second": speed,
            "config": {"actors": actors, "rows_per_block": config.rows_per_block},
            ORDER: order,
        }
        summary = finish(job, scan.chunks, lease, facts)
    errors = {"rows_error": summary.rows_error, "errors_by_code": summary.errors_by_code}
    tracker.phase("finishing", **errors)
    return RunReport(
        rows_total=total,
        rows_ok=summary.rows - summary.rows_error,
        rows_error=summary.rows_error,
        rows_reused=total - todo,
        prompt_tokens=summary.prompt_tokens,
        completion_tokens=summary.completion_tokens,
        seconds=tracker.seconds,
        tokens_per_second=speed,
        errors_by_code=summary.errors_by_code,
        output=config.output,
        bad_shards=tuple(str(bad) for bad in scan.bad),
        rows_not_in_input=facts["rows_not_in_input"],
        **summary.statistics(),
    )


def pending_chunks(
    job: Job, scanned: Sequence[ScannedChunk], ledger: Ledger, done: Ledger
) -> list[tuple[ScannedChunk, int]]:
    """The chunks that hold rows to decode, with their number.

    Raises:
        ValueError: an id whose prompt is another one than when it was committed, unless such rows
            are to be decoded again. Their old rows stay until the new ones are committed.
    """
    finished, keys, ids = done.keys(), ledger.keys(), ledger.ids()
    pending = []
    for part in scanned:
        new = ~finished.contains(part.keys)
        changed = ~keys.contains(part.keys) & ids.contains(part.ids)
        if changed.any() and job.config.on_changed == "refuse":
            raise ValueError(
                f"{int(changed.sum())} rows of {part.chunk.shard.path} have an id that output "
                f"{job.config.output!r} holds with another prompt: choose another output, give "
                "changed rows new ids, or decode them again with on_changed recompute"
            )
        if new.any():
            pending.append((part, int(new.sum())))
    return pending


def _check_fits(job: Job, parts: Sequence[ScannedChunk]) -> None:
    """Refuse values of the input that do not fit the output's type, where it has another one.

    Raises:
        ValueError: naming the column; no block with such a row could be written.
    """
    kept = [job.source.schema.field(name) for name in (job.config.id_column, *job.config.keep)]
    other = [f for f in kept if not f.type.equals(job.schema.field(f.name).type)]

    def check(part: ScannedChunk) -> None:
        with suppress(BadShard):  # met again, and told, when the shard is decoded
            for table in part.chunk.read(pa.schema(other)):
                for field in other:
                    _check_column(job, part.chunk.shard.path, field, table[field.name])

    if other:
        over_threads(check, parts)


def _check_column(job: Job, path: str, field: pa.Field, column: pa.ChunkedArray) -> None:
    wide = job.schema.field(field.name).type
    try:
        column.cast(wide)
    except pa.ArrowException as error:
        raise ValueError(
            f"output is {job.config.output!r}: its column {field.name!r} is of type {wide}, which "
            f"not every {field.type} in {path} fits ({one_line(error)}): choose another output"
        ) from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
