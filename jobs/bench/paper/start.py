"""Checks, loads, runs, and writes the page: `admg-batch bench paper` without its options."""

from __future__ import annotations

import datetime
import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.bench.machine import commit, machine, versions
from jobs.bench.paper.page import write_page
from jobs.bench.paper.progress import Progress, Say
from jobs.bench.paper.record import Record
from jobs.bench.paper.settings import Settings
from jobs.bench.paper.tasks import Task

if TYPE_CHECKING:
    from admg.families import ModelConfig
    from jobs.bench.paper.decoding import Decoder


@dataclass(frozen=True, slots=True)
class Checked:
    """What a run needs, found before any weights are read."""

    settings: Settings
    path: str
    config: ModelConfig
    tokenizer: Any
    tasks: dict[str, Task]


def check(settings: Settings) -> Checked:
    """Everything that can be refused before a model is loaded.

    Raises:
        ValueError: one sentence that says what is wrong and what would be right.
    """
    import torch
    from transformers import AutoTokenizer

    from admg.checkpoint import load_dtype
    from admg.config import DraftConfig
    from admg.llm import check_checkpoint
    from admg.plan import check_layers
    from jobs.bench.paper.expected import check_patterns
    from jobs.bench.paper.load_tasks import load_tasks
    from jobs.bench.paper.searching import planned
    from jobs.bench.paper.variants import fixed_set
    from jobs.bench.runner import model_path
    from jobs.plan_file import check_model

    path = model_path(settings.model)
    config = check_checkpoint(path)
    if config.num_layers < 4:
        raise ValueError(f"--model has {config.num_layers} layers: it must have at least 4")
    check_patterns(settings, config.num_layers)
    for plan in settings.plans.values():
        found = planned(plan)
        check_model(plan, path)
        check_layers(
            DraftConfig(drop=fixed_set(found["attention"], found["mlps"])), config.num_layers
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for dtype in (settings.dtype, settings.timed_dtype):
        load_dtype(dtype, device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"--model is {path}: its tokenizer cannot be read") from error
    limit = min(
        config.max_position_embeddings, config.sliding_window or config.max_position_embeddings
    )
    return Checked(settings, path, config, tokenizer, load_tasks(settings, tokenizer, limit))


def run(checked: Checked, record: Record, say: Say) -> None:
    """Go through all stages; the record and the page are written whatever ends this."""
    import torch

    settings = checked.settings
    torch.set_num_threads(settings.threads)
    record.run.pop("finished", None)
    record.run["asked"] = {"sections": list(settings.sections), "cells": list(settings.cells)}

    def keep() -> None:
        record.write(settings.output)

    try:
        progress = Progress(say)
        drafts = _count(checked, record, keep, progress)
        if "timed" in settings.sections:
            _time(checked, record, keep, progress, drafts)
        record.run["finished"] = _now()
    finally:
        keep()
        say(f"results: {write_page(settings.output, record)}")


def open_record(checked: Checked, command: str, restart: bool, say: Say) -> Record:
    """The record to go on with, or a new one.

    What was timed on another machine, or with other threads, is dropped.

    Raises:
        ValueError: the folder holds another run.
    """
    settings = checked.settings
    about = _about(checked)
    where = machine(settings.threads, settings.dtype)
    found = None if restart else Record.read(settings.output)
    if found is not None:
        found.check_same(about, settings.output)
        dropped = found.move_to(where)
        if dropped:
            say(f"{len(dropped)} cells depend on the clock of another machine: measured again")
        found.run.setdefault("continued", []).append({"at": _now(), "commit": commit()})
        return found
    for trials in settings.output.glob(".paper-*.trials"):
        trials.unlink()
    said = {"started": _now(), "command": command, "machine": where, "commit": commit()}
    return Record(about, {**said, "versions": versions(checked.path)})


def _about(checked: Checked) -> dict[str, Any]:
    """All that counts depend on; the machine is kept apart, for only the clock hangs on it."""
    import torch

    from jobs.bench.paper.searching import planned
    from pipeline.fingerprint import model_identity

    settings = checked.settings
    cuda = torch.cuda.is_available()
    return {
        "model": Path(checked.path).name,
        "model files": model_identity(checked.path),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "shape": {k: v for k, v in asdict(checked.config).items() if k not in ("rope",)},
        "texts": {name: task.about() for name, task in checked.tasks.items()},
        **settings.about(),
        "plans": {task: planned(plan) for task, plan in settings.plans.items()},
    }


def _count(
    checked: Checked, record: Record, keep: Callable[[], None], progress: Progress
) -> Callable[[str], Any]:
    from jobs.bench.paper.run import Counting
    from jobs.bench.paper.searching import searcher
    from jobs.bench.paper.variants import timed_drafts

    settings = checked.settings
    decoder = _decoder(checked, settings.dtype, settings.batch, store=True)
    search = searcher(settings, decoder)
    counting = Counting(settings, decoder, record, keep, progress, search)
    counting.run()
    found, layers = counting.found(), checked.config.num_layers
    del counting, search, decoder
    gc.collect()  # the timed model takes its place
    return lambda task: timed_drafts(settings, layers, found, task)


def _time(
    checked: Checked,
    record: Record,
    keep: Callable[[], None],
    progress: Progress,
    drafts: Callable[[str], Any],
) -> None:
    from jobs.bench.paper.timing import time_all

    settings = checked.settings
    decoder = _decoder(checked, settings.timed_dtype, settings.timed_batch, store=False)
    dtype = record.run["timed_dtype"] = str(decoder.model.dtype).removeprefix("torch.")
    time_all(settings, decoder, record, keep, progress, drafts)
    if "device" not in record.run:
        from jobs.bench.probe import peaks

        record.run["device"] = peaks(dtype)


def _decoder(checked: Checked, dtype: str, batch: int, *, store: bool) -> Decoder:
    import torch

    from admg.checkpoint import load_dtype
    from admg.model import Transformer
    from jobs.bench.paper.decoding import Decoder

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Transformer.load(checked.path, dtype=load_dtype(dtype, device), device=device)
    seed = checked.settings.seed
    return Decoder(model, checked.tokenizer, checked.tasks, batch=batch, seed=seed, store=store)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
