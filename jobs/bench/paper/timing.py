"""The one column that needs a clock: plain decoding and drafters in turn, on the same prompts.

Prompts are prefilled each time, for that is part of what a user waits for. The turns of one repeat
are next to each other, so that a machine that slows down slows all systems; every other repeat goes
through the systems backwards. Where sequences share passes a turn is timed as a whole: the seconds
of single rows overlap.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from admg.config import DraftConfig
from admg.engine import Engine
from admg.request import Completion, Request
from jobs.bench.paper.cells import Cell
from jobs.bench.paper.decoding import Decoder, done_by_key, rows_of, same, trail
from jobs.bench.paper.progress import Progress
from jobs.bench.paper.record import Record
from jobs.bench.paper.settings import LAWS, Settings
from jobs.bench.paper.tasks import Task
from jobs.bench.paper.variants import PLAIN
from jobs.bench.probe import synchronize

# Ten systems, and a token costs about twice as much where few sequences share a pass.
_WORTH = 20
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
        cell = Cell(name, PLAIN, (task,), (law,), settings.timed_prompts)
        requests = decoder.requests(cell)
        progress.begin(name)
        if place != f"{task}/{law}":
            place = f"{task}/{law}"
            engines = {
                system: _warm(decoder, draft, requests, settings.timed_batch)
                for system, draft in drafts(task).items()
            }
        backwards = int(name.rpartition("/")[2]) % 2 == 1
        rows = _turn(decoder, engines, dict(drafts(task)), requests, backwards)
        seconds = progress.end(name)
        record.cells[name] = {"rows": rows, "seconds": round(seconds, 2)}
        keep()


def timed_cells(settings: Settings, record: Record) -> list[tuple[str, str, str]]:
    """Name, task and law of each cell that was asked for and is not there."""
    every = timed_names(settings)
    asked = (settings.sections, settings.cells)
    return [
        c for c in every if Cell(c[0], PLAIN, (), (), 0).wanted(*asked) and c[0] not in record.cells
    ]


def timed_names(settings: Settings) -> list[tuple[str, str, str]]:
    """Name, task and law of every cell."""
    return [
        (f"timed/{task}/{law}/{repeat}", task, law)
        for task in settings.tasks
        for law in LAWS
        for repeat in range(settings.sizes.repeats)
    ]


def timed_work(settings: Settings, task: Task) -> float:
    """A cell's work, in tokens of what is counted: systems in turn, few sequences at a time."""
    return _WORTH * settings.timed_prompts * task.counted


def _warm(decoder: Decoder, draft: DraftConfig, requests: list[Request], batch: int) -> Engine:
    """An engine whose warm-up and first passes are behind it."""
    engine = decoder.engine(draft, requests)
    done_by_key(engine, requests[:batch])
    return engine


def _turn(
    decoder: Decoder,
    engines: Mapping[str, Engine],
    drafts: Mapping[str, DraftConfig],
    requests: list[Request],
    backwards: bool,
) -> dict[str, Any]:
    """The rows of each system, in the order of `drafts`, plain decoding first."""
    ended: dict[str, list[Completion]] = {}
    wall = {}
    for system in sorted(engines, key=list(drafts).index, reverse=backwards):
        synchronize()
        start = time.perf_counter()
        done = done_by_key(engines[system], requests)
        synchronize()
        wall[system] = time.perf_counter() - start
        ended[system] = [done[r.key] for r in requests]
    plain = [(trail(c.token_ids), c.finish_reason) for c in ended[next(iter(drafts))]]
    found = {}
    for system, draft in drafts.items():
        identical = [
            same(c, *p, r.sampling.max_tokens)
            for c, p, r in zip(ended[system], plain, requests, strict=True)
        ]
        rows = rows_of(ended[system], draft, decoder.model, identical, {}, wall=wall[system])
        found[system] = rows.to_dict()
    return found
