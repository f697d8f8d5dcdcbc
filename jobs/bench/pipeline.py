"""What the data plane costs: beside the bare engine, with no engine at all, and when it resumes."""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Barrier
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from admg.config import DraftConfig, EngineConfig, SamplingParams
from admg.request import Request
from jobs.bench.machine import commit, machine, versions
from jobs.bench.null_runs import Say, null_engine, resume, timed
from jobs.demo_prompts import demo_source
from jobs.failures import EXIT_INCOMPLETE, Failure
from pipeline.actors import actors_for
from pipeline.cluster import Cluster, starts_ray
from pipeline.config import PromptConfig, RunConfig
from pipeline.errors import PipelineError
from pipeline.factory import ModelFactory
from pipeline.job import check_job
from pipeline.machine import usable_cores
from pipeline.manifest import read_manifest
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
    actors: int | None = None

    def __post_init__(self) -> None:
        least = {"prompts": 1, "max_tokens": 2, "repeats": 1, "rows": 1, "committed": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value < low:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} is {value}: it must be at least {low}")
        for name in ("threads", "actors"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} is {value}: it must be at least 1")


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
    """Seconds through the pipeline over those without it, in turn, all models freshly loaded.

    Without it one engine has all cores (or `threads`) and all prompts, as in a script. A run may
    lay out CPUs as several engines: these alone, with a part of the prompts each, are measured too.
    Clocks begin when a model is loaded, for engines side by side when all are, for the pipeline
    when the first is; they end with the last completion, for the pipeline when it is committed.
    Decoding is plain: the faster the engine, the more the rest weighs.

    Raises:
        ValueError: a model that cannot be used, or has no room for `max_tokens`.
    """
    prompts = _prompts(sizes.prompts)
    config = _job(folder, model, sizes, prompts)
    factory = ModelFactory.of(config)
    limit = check_job(config, factory).limit
    encoder = PromptEncoder(factory.tokenizer(), False, "truncate-right", limit)
    token_ids = [ids for ids in encoder.encode(prompts) if isinstance(ids, list)]
    seconds: dict[str, list[float]] = {"engine": [], "engines": [], "pipeline": []}
    startups = []
    actors = actors_for(config, factory, len(token_ids), _machine())
    several = actors > 1 and not torch.cuda.is_available()
    kinds = [kind for kind in seconds if kind != "engines" or several]
    for turn in range(sizes.repeats):
        say(f"engine and pipeline, turn {turn + 1} of {sizes.repeats}")
        # Who comes first changes, so that a machine that gets slower or faster favours neither.
        for kind in kinds if turn % 2 == 0 else kinds[::-1]:
            if kind == "pipeline":
                output = str(folder / f"out-{turn}")
                ended = timed(replace(config, output=output))
                assert read_manifest(output)["run"]["config"]["actors"] == actors
                seconds[kind].append(ended.decoding)
                startups.append(ended.ended - ended.decoding)
            else:
                engines = actors if kind == "engines" else 1
                seconds[kind].append(_alone(factory, token_ids, config.sampling, engines))
    return {
        "actors": actors,
        **{f"{kind}_seconds": seconds[kind] for kind in kinds},
        **_ratios("ratio", seconds["pipeline"], seconds["engine"]),
        **_ratios("ratio_to_engines", seconds["pipeline"], seconds["engines"]),
        "startup_seconds": statistics.median(startups),
    }


def _machine() -> Cluster:
    """What a run will find."""
    return Cluster(usable_cores(), torch.cuda.device_count(), starts_ray())


def _prompts(count: int) -> list[str]:
    """The demo's, over and over."""
    tables = (table for part in demo_source().parts for table in part.tables())
    texts = [text for table in tables for text in table["prompt"].to_pylist()]
    return [texts[i % len(texts)] for i in range(count)]


def _job(folder: Path, model: str, sizes: Sizes, prompts: Sequence[str]) -> RunConfig:
    """The run that is measured, its input written."""
    (folder / "in").mkdir(parents=True)
    table = pa.table({"id": list(range(len(prompts))), "prompt": prompts})
    pq.write_table(table, folder / "in" / "prompts.parquet")
    return RunConfig(
        input=(str(folder / "in"),),
        output=str(folder / "checked"),
        model=model,
        prompt=PromptConfig(on_long="truncate-right"),
        sampling=SamplingParams(max_tokens=sizes.max_tokens, ignore_eos=True),
        engine=EngineConfig(draft=DraftConfig(drafter="none")),
        threads=sizes.threads,
        actors=sizes.actors,
    )


def _ratios(name: str, through: Sequence[float], alone: Sequence[float]) -> dict[str, float]:
    """Median and range of the turns; nothing where there is nothing to compare with."""
    if not alone:
        return {}
    ratios = [a / b for a, b in zip(through, alone, strict=True)]
    low, high = min(ratios), max(ratios)
    return {name: statistics.median(ratios), f"{name}_low": low, f"{name}_high": high}


def _alone(
    factory: ModelFactory, prompts: Sequence[list[int]], law: SamplingParams, engines: int
) -> float:
    """Seconds of engines that share prompts and cores, each in a process, until the last is done.

    The longest prompts are dealt first, so that all have about as much to do.
    """
    longest_first = sorted(prompts, key=len, reverse=True)
    factory = replace(factory, cpu_share=engines)
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(engines, mp_context=context) as pool:
        loaded = manager.Barrier(engines)
        parts = [longest_first[i::engines] for i in range(engines)]
        each = [pool.submit(_bare_seconds, factory, part, law, loaded) for part in parts]
        return max(one.result() for one in each)


def _bare_seconds(
    factory: ModelFactory, prompts: Sequence[list[int]], law: SamplingParams, loaded: Barrier
) -> float:
    """Load the model as an actor does, then decode with nothing around the engine."""
    try:
        engine = factory.build()
    except BaseException:
        loaded.abort()  # else the others would wait for this one for ever
        raise
    loaded.wait()
    begun = time.perf_counter()
    for i, token_ids in enumerate(prompts):
        engine.submit(Request(token_ids, law, str(i)))
    while engine.has_work:
        engine.step()
    return time.perf_counter() - begun
