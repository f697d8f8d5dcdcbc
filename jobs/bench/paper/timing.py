"""The one column that needs a clock: plain decoding and drafters in turn, on the same prompts.

Prompts are prefilled each time, for that is part of what a user waits for. The turns of one repeat
are next to each other, so that a machine that slows down slows all systems.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from admg.config import DraftConfig
from admg.engine import Engine
from admg.request import Request
from jobs.bench.paper.cells import Cell
from jobs.bench.paper.decoding import Decoder, done_by_key, rows_of, same, trail
from jobs.bench.paper.progress import Progress
from jobs.bench.paper.record import Record
from jobs.bench.paper.settings import LAWS, Settings
from jobs.bench.paper.tasks import Task
from jobs.bench.paper.variants import PLAIN
from jobs.bench.probe import synchronize

# Five systems, and a token costs about twice as much where few sequences share a pass.
_WORTH = 10
Drafts = Callable[[str], Mapping[str, DraftConfig]]


def time_all(
    settings: Settings,
    decoder: Decoder,
    record: Record,
    keep: Callable[[], None],
    progress: Progress,
    drafts: Drafts,
) -> None:
    """Time every task, law and repeat that the record does not hold yet.

    Args:
        decoder: without a store of prompts, in the precision that is timed.
        drafts: the systems of a task, plain decoding first.
    """
    cells = timed_cells(settings, record)
    for name, task, _ in cells:
        progress.expect(name, timed_work(settings, decoder.tasks[task]))
    engines: dict[str, Engine] = {}
    place = ""
    for name, task, law in cells:
        cell = Cell(name, PLAIN, (task,), (law,), settings.sizes.timed)
        requests = decoder.requests(cell)
        progress.begin(name)
        if place != f"{task}/{law}":
            place = f"{task}/{law}"
            engines = {
                system: _warm(decoder, draft, requests) for system, draft in drafts(task).items()
            }
        rows = _turn(decoder, engines, dict(drafts(task)), requests)
        seconds = progress.end(name)
        record.cells[name] = {"rows": rows, "seconds": round(seconds, 2)}
        keep()


def timed_cells(settings: Settings, record: Record) -> list[tuple[str, str, str]]:
    """Name, task and law of each cell that was asked for and is not there."""
    every = [
        (f"timed/{task}/{law}/{repeat}", task, law)
        for task in settings.tasks
        for law in LAWS
        for repeat in range(settings.sizes.repeats)
    ]
    asked = (settings.sections, settings.cells)
    return [
        c for c in every if Cell(c[0], PLAIN, (), (), 0).wanted(*asked) and c[0] not in record.cells
    ]


def timed_work(settings: Settings, task: Task) -> float:
    """A cell's work, in tokens of what is counted: systems in turn, few sequences at a time."""
    return _WORTH * settings.sizes.timed * task.max_tokens


def _warm(decoder: Decoder, draft: DraftConfig, requests: list[Request]) -> Engine:
    """An engine whose warm-up and first passes are behind it."""
    engine = decoder.engine(draft, requests)
    done_by_key(engine, requests[:1])
    return engine


def _turn(
    decoder: Decoder,
    engines: Mapping[str, Engine],
    drafts: Mapping[str, DraftConfig],
    requests: list[Request],
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    plain: list[list[int]] = []
    for system, engine in engines.items():
        synchronize()
        done = done_by_key(engine, requests)
        synchronize()
        completions = [done[r.key] for r in requests]
        ids = [c.token_ids for c in completions]
        plain = plain or [trail(i) for i in ids]
        identical = [
            same(i, p, r.sampling.max_tokens) for i, p, r in zip(ids, plain, requests, strict=True)
        ]
        rows = rows_of(completions, drafts[system], decoder.model, identical, {}, timed=True)
        found[system] = rows.to_dict()
    return found
