"""Runs of the pipeline on a clock, and those without an engine: a new one, and one that resumes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from admg.config import EngineConfig, SamplingParams
from jobs.bench.null_engine import NULL_BATCH, NULL_TOKENS, NullFactory, completed
from pipeline.blocks import rows_per_block
from pipeline.config import RunConfig
from pipeline.decode import row_result, with_results
from pipeline.errors import PipelineError
from pipeline.factory import EngineFactory
from pipeline.job import check_job
from pipeline.lease import hold
from pipeline.prepare import Prepare
from pipeline.progress import Progress
from pipeline.run import RunReport, run
from pipeline.sink import commit
from pipeline.stages import Detokenize, Tokenize
from pipeline.threads import over_threads

Say = Callable[[str], None]
_SHARD_ROWS = 100_000
_TEXT = "It says this and that, as records of this kind do. " * 4


@dataclass(frozen=True, slots=True)
class Timed:
    """A run and its clock.

    `checked` is when it knew what there was to do, `ended` when its last block was committed,
    `seconds` when it returned. `decoding` is how long it decoded, from the first loaded model on
    (of a run that finds nothing committed).
    """

    report: RunReport
    checked: float
    decoding: float
    ended: float
    seconds: float


def timed(config: RunConfig, factory: EngineFactory | None = None) -> Timed:
    """Run, and note when each phase began.

    Raises:
        PipelineError: the run ended early, or rows of it failed: its times would mean nothing.
    """
    phases: dict[str, float] = {}

    def note(progress: Progress) -> None:
        phases.setdefault(progress.phase, progress.seconds)

    begun = time.perf_counter()
    report = run(config, on_progress=note, engine_factory=factory)
    seconds = time.perf_counter() - begun
    if report.rows_error:
        raise PipelineError(f"{report.rows_error} rows failed: {report.errors_by_code}")
    tokens = report.tokens_per_second
    decoding = report.completion_tokens / tokens if tokens else 0.0
    return Timed(report, phases["starting"], decoding, phases["finishing"], seconds)


def null_engine(folder: Path, rows: int) -> dict[str, Any]:
    """Rows per second of a run whose engine answers at once."""
    write_input(folder / "in", 0, rows)
    ended = timed(null_config(folder), NullFactory())
    return {
        "rows": rows,
        "rows_per_second": rows / ended.decoding,
        "startup_seconds": ended.ended - ended.decoding,
        "decoding_seconds": ended.decoding,
        "finishing_seconds": ended.seconds - ended.ended,
        "seconds": ended.seconds,
    }


def resume(folder: Path, rows: int, say: Say) -> dict[str, Any]:
    """How long runs take that find all rows but a block's committed, and then all of them."""
    config = null_config(folder)
    block = rows_per_block(config, rows, 0.0, None)
    say(f"{rows} committed rows are made, in files of {block}")
    write_input(folder / "in", 0, rows)
    files = commit_all(config, block)
    write_input(folder / "in", rows, block)
    say(f"resumed with {block} rows to do, beside {files} files")
    last = timed(config, NullFactory())
    assert last.report.rows_reused == rows
    say("resumed with nothing to do")
    nothing = timed(config, NullFactory())
    assert nothing.report.rows_reused == rows + block
    return {
        "committed": rows,
        "files": files,
        "rows_to_do": block,
        "checking_seconds": last.checked,
        "until_committed_seconds": last.ended,
        "finishing_seconds": last.seconds - last.ended,
        "nothing_to_do_seconds": nothing.seconds,
    }


def null_config(folder: Path) -> RunConfig:
    """From the input in a folder to an output beside it."""
    return RunConfig(
        input=(str(folder / "in"),),
        output=str(folder / "out"),
        model="null",
        sampling=SamplingParams(max_tokens=NULL_TOKENS),
        engine=EngineConfig(max_num_seqs=NULL_BATCH),
        dtype="float32",  # said, for rows are committed here without a run to choose it
    )


def write_input(folder: Path, start: int, count: int) -> None:
    """Shards of rows with prompts of about 200 characters."""
    folder.mkdir(parents=True, exist_ok=True)
    for first in range(start, start + count, _SHARD_ROWS):
        ids = range(first, min(first + _SHARD_ROWS, start + count))
        prompts = [f"Summarise record number {i}. {_TEXT}" for i in ids]
        table = pa.table({"id": list(ids), "prompt": prompts})
        pq.write_table(table, folder / f"shard-{first:09d}.parquet", row_group_size=20_000)


def commit_all(config: RunConfig, block: int) -> int:
    """Commit every row of the input through a run's own stages, in files of `block` rows.

    Ray is left out, so that a million rows take a minute or so. It is as if a run had been killed
    before its end: small files, no manifest.
    """
    factory = NullFactory()
    job = check_job(config, factory)
    prepare = Prepare(config.id_column, config.keep, config.prompt)
    tokenize = Tokenize(factory, config.prompt, job.limit, config.sampling)
    detokenize = Detokenize(factory, job.schema)
    answer = row_result(completed(0, "", 1))
    files = 0
    with hold(job.store) as lease:

        def write(table: pa.Table) -> None:
            decoded = with_results(tokenize(prepare(table)), [answer] * table.num_rows)
            commit(lease.store, job.fingerprint, detokenize(decoded))

        for chunk in job.source.chunks:
            whole = pa.concat_tables(chunk.read(job.source.schema))
            blocks = [whole.slice(i, block) for i in range(0, whole.num_rows, block)]
            over_threads(write, blocks)
            files += len(blocks)
    return files
