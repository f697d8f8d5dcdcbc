"""One run: check, leave out what is committed, decode the rest, and prove that all is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from pipeline.config import RunConfig
from pipeline.dataflow import decode
from pipeline.errors import PipelineError
from pipeline.factory import EngineFactory, ModelFactory
from pipeline.job import Job, check_job
from pipeline.ledger import (
    Ledger,
    over_files,
    read_columns,
    read_ledger,
    remove_repeated_rows,
)
from pipeline.manifest import MANIFEST, SUCCESS, write_manifest, write_run
from pipeline.progress import Progress, Tracker, ratio
from pipeline.sink import CommittedFile
from pipeline.source import ScannedChunk
from pipeline.summary import COLUMNS, Summary


@dataclass(frozen=True, slots=True)
class RunReport:
    """The end of a run. Rows, tokens and ratios are those of the whole output.

    `rows_reused` were committed by earlier runs; `seconds` and `tokens_per_second` are this run's,
    the latter over the time since the first model was loaded (0 where nothing was decoded).
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


def run(
    config: RunConfig,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    engine_factory: EngineFactory | None = None,
) -> RunReport:
    """Decode every input row that the output does not hold yet.

    `on_progress` is called from this thread and from another one, never from both at once.

    Raises:
        ValueError: a user's mistake, before any model is loaded.
        PipelineError: the run ended early; what is committed stays.
        KeyboardInterrupt: passed through; what is committed stays.
    """
    started = _now()
    tracker = Tracker(on_progress)
    tracker.phase("checking")
    job = check_job(config, engine_factory or ModelFactory.of(config))
    scanned = job.source.scan(config)
    ledger = read_ledger(job.store, config.id_column)
    pending = _pending(job, scanned, ledger)
    total = sum(s.chunk.rows for s in scanned)
    reused = total - sum(rows for _, rows in pending)
    tracker.phase("starting", rows_total=total, rows_done=reused)
    job.store.prepare()
    files: Sequence[CommittedFile] = ()
    if pending:
        # What follows makes the output incomplete again, whatever an earlier run has said.
        job.store.delete(SUCCESS)
        write_run(job.store, config, job.fingerprint, started)
        files = decode(job, [s.chunk for s, _ in pending], ledger, tracker, reused)
    speed = ratio(sum(f.completion_tokens for f in files), tracker.decoding_seconds) or 0.0
    tracker.phase("finishing", rows_done=total)
    summary = _finish(job, scanned, started, reused, speed)
    return RunReport(
        rows_total=total,
        rows_ok=summary.rows - summary.rows_error,
        rows_error=summary.rows_error,
        rows_reused=reused,
        prompt_tokens=summary.prompt_tokens,
        completion_tokens=summary.completion_tokens,
        seconds=tracker.seconds,
        tokens_per_second=speed,
        errors_by_code=summary.errors_by_code,
        output=config.output,
        **summary.statistics(),
    )


def _pending(
    job: Job, scanned: Sequence[ScannedChunk], ledger: Ledger
) -> list[tuple[ScannedChunk, int]]:
    """The chunks that hold rows to decode, with their number.

    Raises:
        ValueError: an id whose prompt is another one than when it was committed.
    """
    keys, ids = ledger.keys(), ledger.ids()
    pending = []
    for part in scanned:
        new = ~keys.contains(part.keys)
        changed = new & ids.contains(part.ids)
        if changed.any():
            raise ValueError(
                f"{int(changed.sum())} rows of {part.chunk.shard.path} have an id that output "
                f"{job.config.output!r} holds with another prompt: choose another output, or give "
                "changed rows new ids"
            )
        if new.any():
            pending.append((part, int(new.sum())))
    return pending


def _finish(
    job: Job, scanned: Sequence[ScannedChunk], started: str, reused: int, speed: float
) -> Summary:
    """Compare the ids of input and output, write the manifest, and `_SUCCESS` last.

    Raises:
        PipelineError: input rows are missing in the output.
    """
    ledger = read_ledger(job.store, job.config.id_column)
    if remove_repeated_rows(job.store, job.fingerprint, ledger):
        ledger = read_ledger(job.store, job.config.id_column)
    committed = ledger.ids()
    missing = sum(int(np.count_nonzero(~committed.contains(s.ids))) for s in scanned)
    if missing:
        raise PipelineError(
            f"{missing} rows of the input are not in output {job.config.output!r}: run the same "
            "command again to decode them"
        )
    total = sum(s.chunk.rows for s in scanned)
    summary = Summary.total(
        over_files(
            lambda name: Summary.of(read_columns(job.store, name, COLUMNS)),
            [f.name for f in ledger.files],
        )
    )
    if total == reused and job.store.exists(SUCCESS) and job.store.exists(MANIFEST):
        return summary  # nothing was done: the manifest of the run that did it stays
    run_facts = {
        "started": started,
        "ended": _now(),
        "input": list(job.config.input),
        "rows_input": total,
        "rows_reused": reused,
        "rows_not_in_input": ledger.rows - total,
        "tokens_per_second": speed,
        "config": {"actors": job.config.actors, "rows_per_block": job.config.rows_per_block},
    }
    write_manifest(job.store, job.fingerprint, ledger, summary, run_facts)
    job.store.write(SUCCESS, b"")
    return summary


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
