"""What one run leaves to the next about rows that were in engines that died."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from pipeline.attempts import FOLDER, SUFFIX, Deaths, History, parse_state
from pipeline.errors import PipelineError
from pipeline.storage import Store

_BEFORE = "before.json"
_STOPPED = "stopped.json"


def fold(store: Store, is_done: Callable[[str], bool]) -> History:
    """What the runs before this one have seen, in one object; their actors' records go.

    A row that is committed needs no memory. A record without a last word is one of a process that
    most likely ended with its run, as where a whole cluster is killed. The names of the records are
    kept with the sum, so that a crash in between counts nothing twice. Nobody else may be at work
    on this output.
    """
    store.make_folder(FOLDER)
    names = [n for n in store.names(SUFFIX, FOLDER) if n not in (_BEFORE, _STOPPED)]
    before: dict[str, Any] = {"folded": [], "rows": {}, "deaths": 0, "explained": 0}
    if store.exists(f"{FOLDER}/{_BEFORE}"):
        before = json.loads(store.read(f"{FOLDER}/{_BEFORE}"))
    stopped = ""
    if store.exists(f"{FOLDER}/{_STOPPED}"):
        stopped = json.loads(store.read(f"{FOLDER}/{_STOPPED}"))["run"]
    rows = {key: Deaths(**deaths) for key, deaths in before["rows"].items()}
    # Of the actor that has seen the most: they live in one world, and the rows' deaths are one's.
    worst = (before["deaths"], before["explained"])
    for name in names:
        if name in before["folded"]:
            continue
        state = parse_state(store.read(f"{FOLDER}/{name}"))
        if stopped and name.startswith(stopped) and state.failure is None:
            state.in_flight, state.alone = [], []  # it was told to stop
        state.charge(rows, whole_run=True)
        here = (state.deaths, state.all_explained(rows))
        worst = max(worst, here, key=lambda pair: pair[0] - pair[1])
        for key, deaths in state.rows.items():
            seen = Deaths(**deaths)
            if seen.total > rows.get(key, Deaths()).total:
                rows[key] = seen
    rows = {key: deaths for key, deaths in rows.items() if not is_done(key)}
    if names or rows or before["rows"]:
        content = {
            "folded": names,
            "rows": {k: asdict(d) for k, d in rows.items()},
            "deaths": worst[0],
            "explained": worst[1],
        }
        store.write(f"{FOLDER}/{_BEFORE}", json.dumps(content).encode())
    for name in (*names, _STOPPED):
        store.delete(f"{FOLDER}/{name}")
    return History(rows, *worst)


def note_stop(store: Store, run: str) -> None:
    """The actors of this run end because somebody wants it: no row is to blame.

    Whoever wants that does not want to wait for a storage that fails: then the note is not made.
    """
    hurried = replace(store, patience=replace(store.patience, seconds=1.0))
    with suppress(PipelineError, OSError):
        hurried.write(f"{FOLDER}/{_STOPPED}", json.dumps({"run": run}).encode())


def clear(store: Store) -> None:
    """Every row is committed: nothing needs to be remembered."""
    for name in store.names(SUFFIX, FOLDER):
        store.delete(f"{FOLDER}/{name}")
