"""What the data plane costs: beside the bare engine, with no engine at all, and when it resumes."""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from admg.config import DraftConfig, EngineConfig, SamplingParams
from admg.request import Request
from jobs.bench.machine import commit, machine, versions
from jobs.bench.null_runs import Say, null_engine, resume, timed
from jobs.bench.settings import usable_cores
from jobs.demo_prompts import demo_source
from jobs.failures import EXIT_INCOMPLETE, Failure
from pipeline.config import PromptConfig, RunConfig
from pipeline.errors import PipelineError
from pipeline.factory import ModelFactory
from pipeline.job import check_job
from pipeline.prompts import PromptEncoder

_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured.

    Raises:
        ValueError: a number that leaves nothing to measure, by the name of its option.
    """

    prompts: int
    max_tokens: int
    repeats: int
    rows: int
    committed: int
    threads: int | None = None

    def __post_init__(self) -> None:
        least = {"prompts": 1, "max_tokens": 2, "repeats": 1, "rows": 1, "committed": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value < low:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} is {value}: it must be at least {low}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"--threads is {self.threads}: it must be at least 1")


def measure(model: str, sizes: Sizes, say: Say) -> dict[str, Any]:
    """Every figure, with what makes it a record.

    Raises:
        ValueError: a model that cannot be used, or has no room for `max_tokens`.
        Failure: a run ended early, or rows of it failed.
    """
    found: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(usable_cores(), "auto") | {"load_before": os.getloadavg()[0]},
        "versions": versions(model)
        | {name: importlib.metadata.version(name) for name in ("ray", "pyarrow")},
        "commit": commit(),
        "sizes": asdict(sizes),
    }
    with tempfile.TemporaryDirectory(prefix="admg-bench-") as name:
        folder = Path(name)
        try:
            found["overhead"] = overhead(folder / "overhead", model, sizes, say)
            say(f"no engine, {sizes.rows} rows")
            found["null_engine"] = null_engine(folder / "null", sizes.rows)
            found["resume"] = resume(folder / "resume", sizes.committed, say)
        except (PipelineError, BrokenExecutor) as error:
            raise Failure(f"{type(error).__name__}: {error}", EXIT_INCOMPLETE) from error
    return _rounded(found)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return round(value, _DIGITS) if isinstance(value, float) else value


def overhead(folder: Path, model: str, sizes: Sizes, say: Say) -> dict[str, Any]:
    """Seconds through the pipeline over those of the engine alone, in turn, both freshly loaded.

    Both clocks begin when the model is loaded and end with the last completion, for the pipeline
    when it is committed. Decoding is plain: the faster the engine, the more the rest weighs.

    Raises:
        ValueError: a model that cannot be used, or has no room for `max_tokens`.
    """
    tables = (table for part in demo_source().parts for table in part.tables())
    texts = [text for table in tables for text in table["prompt"].to_pylist()]
    prompts = [texts[i % len(texts)] for i in range(sizes.prompts)]
    (folder / "in").mkdir(parents=True)
    table = pa.table({"id": list(range(len(prompts))), "prompt": prompts})
    pq.write_table(table, folder / "in" / "prompts.parquet")
    config = RunConfig(
        input=(str(folder / "in"),),
        output=str(folder / "checked"),
        model=model,
        prompt=PromptConfig(on_long="truncate-right"),
        sampling=SamplingParams(max_tokens=sizes.max_tokens, ignore_eos=True),
        engine=EngineConfig(draft=DraftConfig(drafter="none")),
        threads=sizes.threads,
    )
    factory = ModelFactory.of(config)
    limit = check_job(config, factory).limit
    encoder = PromptEncoder(factory.tokenizer(), False, "truncate-right", limit)
    token_ids = [ids for ids in encoder.encode(prompts) if isinstance(ids, list)]
    alone, through, startups = [], [], []
    for turn in range(sizes.repeats):
        say(f"engine and pipeline, turn {turn + 1} of {sizes.repeats}")
        # Who comes first changes, so that a machine that gets slower or faster favours neither.
        for bare in (True, False) if turn % 2 == 0 else (False, True):
            if bare:
                alone.append(_in_a_process(_bare_seconds, factory, token_ids, config.sampling))
            else:
                ended = timed(replace(config, output=str(folder / f"out-{turn}")))
                through.append(ended.decoding)
                startups.append(ended.ended - ended.decoding)
    ratios = [b / a for a, b in zip(alone, through, strict=True)]
    return {
        "engine_seconds": alone,
        "pipeline_seconds": through,
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "startup_seconds": statistics.median(startups),
    }


def _in_a_process(function: Callable[..., float], *arguments: Any) -> float:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def _bare_seconds(
    factory: ModelFactory, prompts: Sequence[list[int]], law: SamplingParams
) -> float:
    """Load the model as an actor does, then decode with nothing around the engine."""
    engine = replace(factory, cpu_share=1).build()
    begun = time.perf_counter()
    for i, token_ids in enumerate(prompts):
        engine.submit(Request(token_ids, law, str(i)))
    while engine.has_work:
        engine.step()
    return time.perf_counter() - begun
