"""The run: check everything, then load every system, then time them in turn."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jobs.bench.machine import commit, machine, versions
from jobs.bench.measure import Outcome, Shape
from jobs.bench.memory import available_bytes, check_memory, model_shape, needed
from jobs.bench.process import Worker, WorkerError
from jobs.bench.settings import Cell, Settings
from jobs.bench.systems import PLAIN, System, check_peer, draft_config
from jobs.bench.workloads import check_workload, find_data, load_texts, tokenize
from jobs.plan_file import check_model

if TYPE_CHECKING:
    from admg.families import ModelConfig

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What the checks found: everything that the workers need to be told."""

    settings: Settings
    model: str
    dtype: str
    prompts: Mapping[str, list[list[int]]]
    shape: Shape
    weight_bytes: int
    cache_bytes: int


@dataclass
class Report:
    """What has been measured so far. `failed` says why a system was left out from then on."""

    plan: Plan
    started: str
    machine: dict[str, Any]
    versions: dict[str, str]
    commit: str | None
    outcomes: dict[tuple[Cell, str], list[Outcome]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def check(settings: Settings) -> Plan:
    """Everything that can be refused before a model is loaded.

    Raises:
        ValueError: one sentence that says what is wrong and what would be right.
    """
    names = [check_workload(name) for name in settings.workloads]
    if any(s.own_python for s in settings.systems):
        check_peer(settings.peer_python)
    data = find_data(settings.data)
    texts = {name: load_texts(name, data, settings.prompts) for name in names}
    return _check_model(settings, texts)


def _check_model(settings: Settings, texts: Mapping[str, Sequence[str]]) -> Plan:
    import torch
    from transformers import AutoTokenizer

    from admg.checkpoint import load_dtype
    from admg.llm import check_checkpoint
    from admg.plan import check_layers

    path = model_path(settings.model)
    config = check_checkpoint(path)
    for system in settings.systems:
        if "plan" in system.options:
            check_model(system.options["plan"], path)
        check_layers(draft_config(system), config.num_layers)
        _check_drop(system, config)
    dtype = load_dtype(settings.dtype, "cuda" if torch.cuda.is_available() else "cpu")
    shape = model_shape(config, dtype.itemsize)
    limit = min(
        config.max_position_embeddings, config.sliding_window or config.max_position_embeddings
    )
    room = limit - settings.max_tokens
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"--model is {path}: its tokenizer cannot be read") from error
    prompts = {name: tokenize(name, t, tokenizer, room) for name, t in texts.items()}
    length = max(len(p) for ps in prompts.values() for p in ps) + settings.max_tokens
    need = needed(settings.systems, config, shape, settings.batches, settings.prompts, length)
    check_memory(need, available_bytes())
    batch = min(max(settings.batches), settings.prompts)
    return Plan(
        settings=settings,
        model=path,
        dtype=str(dtype).removeprefix("torch."),
        prompts=prompts,
        shape=shape,
        weight_bytes=config.num_parameters * dtype.itemsize,
        cache_bytes=batch * length * shape.kv_bytes_per_token,
    )


def model_path(model: str) -> str:
    """The folder of `--model`; the demo model's is made on first use.

    Raises:
        ValueError: the demo model cannot be made.
    """
    from jobs.demo_model import DemoModelError, demo_model

    if model != "demo":
        return model
    try:
        return str(demo_model())
    except DemoModelError as error:
        raise ValueError(str(error)) from error


def _check_drop(system: System, config: ModelConfig) -> None:
    from admg.plan import check_count

    try:
        check_count(draft_config(system).drop, config.num_layers)
    except ValueError as error:
        raise ValueError(f"--system {system.name}: {error}") from error


def run(plan: Plan, say: Say, on_cell: Callable[[Report], None]) -> Report:
    """Time every system on every cell; `on_cell` is called after each cell.

    A peer that fails is left out from then on; it is named in the report.

    Raises:
        WorkerError: plain decoding failed, without which there is no ratio.
    """
    with loaded(plan, say) as (workers, report):
        report.machine |= _peaks(plan)
        cells = plan.settings.cells
        for number, cell in enumerate(cells, 1):
            say(f"[{number}/{len(cells)}] {cell}: warming up")
            time_cell(cell, plan, workers, report, say)
            on_cell(report)
    return report


@contextmanager
def loaded(plan: Plan, say: Say) -> Iterator[tuple[dict[str, Worker], Report]]:
    """A worker for every system, its model loaded, and a report with nothing in it yet.

    Raises:
        WorkerError: plain decoding failed.
    """
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        report = Report(
            plan,
            datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            machine(plan.settings.threads, plan.dtype),
            versions(plan.model),
            commit(),
        )
        for system in plan.settings.systems:
            say(f"loading {system.name}")
            workers[system.name] = stack.enter_context(_start(system, plan.settings))
            report.versions |= _load(system, plan, workers, report) or {}
        yield workers, report


def _peaks(plan: Plan) -> dict[str, float]:
    """The machine's peaks, from a process of its own, whose memory is nobody else's."""
    threads, module = plan.settings.threads, "jobs.bench.probe"
    with Worker("probe", threads=threads, peer=None, module=module) as worker:
        return dict(worker.ask("probe", dtype=plan.dtype))


def _start(system: System, settings: Settings) -> Worker:
    return Worker(
        system.name,
        threads=settings.threads,
        peer=settings.peer_python if system.own_python else None,
        module=system.backend.partition(":")[0],
    )


def _load(system: System, plan: Plan, workers: dict[str, Worker], report: Report) -> Any | None:
    return _ask(
        report,
        workers,
        system.name,
        "load",
        backend=system.backend,
        system={"name": system.name, "kind": system.kind, "options": dict(system.options)},
        model=plan.model,
        dtype=plan.dtype,
        threads=plan.settings.threads,
        weight_bytes=plan.weight_bytes,
        cache_bytes=plan.cache_bytes,
    )


def _ask(
    report: Report, workers: dict[str, Worker], name: str, do: str, **fields: Any
) -> Any | None:
    """A worker's answer; a peer that fails is ended, and the run goes on without it."""
    try:
        return workers[name].ask(do, **fields)
    except WorkerError as error:
        if name == PLAIN:
            raise
        report.failed[name] = str(error)
        workers.pop(name).close(at_once=True)
        return None


def time_cell(cell: Cell, plan: Plan, workers: dict[str, Worker], report: Report, say: Say) -> None:
    """Warm every system up on a cell, then time all in turn; `report` gets the outcomes."""
    work = {
        "prompts": plan.prompts[cell.workload],
        "batch": cell.batch,
        "temperature": cell.temperature,
        "max_tokens": plan.settings.max_tokens,
    }
    names = [s.name for s in plan.settings.systems if s.runs(cell.batch)]
    for name in names:
        if name in workers:
            _ask(report, workers, name, "prepare", cell=work)
    timed: dict[str, list[Outcome]] = {name: [] for name in names}
    for repeat in range(plan.settings.repeats):
        for name in names:
            if name not in workers:
                continue
            answer = _ask(report, workers, name, "run")
            if answer is not None:
                timed[name].append(Outcome(**answer))
        rates = [f"{n} {timed[n][-1].tokens_per_second:.1f}" for n in names if n in workers]
        say(f"  repeat {repeat + 1}/{plan.settings.repeats}, tokens/s: {', '.join(rates)}")
    report.outcomes |= {(cell, name): timed[name] for name in names if name in workers}
