"""Which rows were in an engine when it died: a record that outlives the process.

Each Decode actor keeps one small object in the output's `_admg/attempts/`. It names the rows that
may be in the engine, and is written before they get there. A process that starts and finds the
record of the actor that it replaces knows that its predecessor died, and with which rows; a run
that starts finds the records of all actors of the runs before it. What follows from a row's deaths
is decided in `quarantine`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.errors import CRASHED, DEADLINE, OUT_OF_MEMORY
from pipeline.storage import STATE, Store

FOLDER = f"{STATE}/attempts"
_BEFORE = "before.json"
_STOPPED = "stopped.json"
_SUFFIX = ".json"
# A record whose writer hangs in the storage must not keep a dead engine alive.
_LOCK_SECONDS = 20.0
NO_WORD = "the process ended without a word: killed, out of host memory, or a fault in native code"


@dataclass(frozen=True, slots=True)
class Deaths:
    """How often a row was in an engine that died, by cause, and what was said the last time.

    `alone` counts the deaths in which it was the only suspect.
    """

    crashes: int = 0
    ooms: int = 0
    deadlines: int = 0
    alone: int = 0
    code: str = ""
    message: str = ""

    @property
    def total(self) -> int:
        """Attempts that ended in a death."""
        return self.crashes + self.ooms + self.deadlines

    def plus(self, code: str, message: str, alone: bool) -> Deaths:
        """With one more."""
        return Deaths(
            self.crashes + (code not in (OUT_OF_MEMORY, DEADLINE)),
            self.ooms + (code == OUT_OF_MEMORY),
            self.deadlines + (code == DEADLINE),
            self.alone + alone,
            code,
            message,
        )


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an engine's process leaves, and the keys of the rows that may be the reason."""

    code: str
    message: str
    rows: tuple[str, ...]


@dataclass(slots=True)
class _State:
    """What one actor's object holds."""

    in_flight: list[str] = field(default_factory=list)
    alone: list[str] | None = None
    failure: dict[str, Any] | None = None
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    loads: int = 0
    full_ooms: int = 0

    def charge(self, earlier: Mapping[str, Deaths]) -> None:
        """Turn what a dead process left behind into deaths of its rows."""
        suspects: Iterable[str] = self.alone if self.alone is not None else self.in_flight
        failure = Failure(CRASHED, NO_WORD, tuple(suspects))
        if self.failure is not None:
            failure = Failure(**{**self.failure, "rows": tuple(self.failure["rows"])})
            if failure.code == OUT_OF_MEMORY and self.alone is None:
                self.full_ooms += 1
        for key in failure.rows:
            known = self.deaths(key, earlier)
            more = known.plus(failure.code, failure.message, len(failure.rows) == 1)
            self.rows[key] = asdict(more)
        self.in_flight, self.alone, self.failure = [], None, None

    def deaths(self, key: str, earlier: Mapping[str, Deaths]) -> Deaths:
        """What is known of a row."""
        return Deaths(**self.rows[key]) if key in self.rows else earlier.get(key, Deaths())


class AttemptRecord:
    """One actor's record. Every change is in the storage when its method returns.

    Args:
        store: the output.
        name: stays the same when the actor is restarted.
        earlier: deaths that earlier runs saw.

    Raises:
        OSError: from any method, where the storage refuses.
    """

    def __init__(self, store: Store, name: str, earlier: Mapping[str, Deaths]) -> None:
        self._store = store
        self._name = f"{FOLDER}/{name}{_SUFFIX}"
        self._lock = threading.Lock()
        self._earlier = earlier
        found = store.exists(self._name)
        self._state = _parse(store.read(self._name)) if found else _State()
        self._state.charge(earlier)
        self._state.loads += 1
        self._write()

    @property
    def loads(self) -> int:
        """Processes in a row, this one included, that have not come to have an engine."""
        return self._state.loads

    @property
    def full_ooms(self) -> int:
        """How often a batch of rows that were under no suspicion ran out of memory."""
        return self._state.full_ooms

    def deaths(self, key: str) -> Deaths:
        """What is known of a row."""
        return self._state.deaths(key, self._earlier)

    def loaded(self) -> None:
        """The engine is there."""
        self._change(lambda s: setattr(s, "loads", 0))

    def begin(self, keys: Sequence[str]) -> None:
        """These rows may enter the engine from now on."""
        self._change(lambda s: s.in_flight.extend(keys))

    def end(self, keys: Sequence[str], keep: Sequence[str] = ()) -> None:
        """These rows are done; only what was found out about `keep` is remembered."""
        done, gone = set(keys), set(keys).difference(keep)

        def change(s: _State) -> None:
            s.in_flight = [k for k in s.in_flight if k not in done]
            s.rows = {k: v for k, v in s.rows.items() if k not in gone}

        self._change(change)

    def alone(self, keys: Sequence[str] | None) -> None:
        """The engine holds nothing but these rows; None: whatever is in flight again."""
        self._change(lambda s: setattr(s, "alone", None if keys is None else list(keys)))

    def died(self, failure: Failure) -> None:
        """The last word of a process that is about to leave."""
        self._change(lambda s: setattr(s, "failure", asdict(failure)))

    def _change(self, change: Callable[[_State], object]) -> None:
        if not self._lock.acquire(timeout=_LOCK_SECONDS):
            raise TimeoutError("the record of attempts is being written for too long")
        try:
            change(self._state)
            self._write()
        finally:
            self._lock.release()

    def _write(self) -> None:
        self._store.write(self._name, json.dumps(asdict(self._state)).encode())


def _parse(data: bytes) -> _State:
    return _State(**json.loads(data))


def fold(store: Store, is_done: Callable[[str], bool]) -> dict[str, Deaths]:
    """What the runs before this one have seen, in one object; their actors' records go.

    A row that is committed needs no memory. The names of the records are kept with the sum, so
    that a crash in between counts nothing twice. Nobody else may be at work on this output.
    """
    prepare_folder(store)
    names = [n for n in store.names(_SUFFIX, FOLDER) if n not in (_BEFORE, _STOPPED)]
    before: dict[str, Any] = {"folded": [], "rows": {}}
    if store.exists(f"{FOLDER}/{_BEFORE}"):
        before = json.loads(store.read(f"{FOLDER}/{_BEFORE}"))
    stopped = ""
    if store.exists(f"{FOLDER}/{_STOPPED}"):
        stopped = json.loads(store.read(f"{FOLDER}/{_STOPPED}"))["run"]
    rows = {key: Deaths(**deaths) for key, deaths in before["rows"].items()}
    for name in names:
        if name in before["folded"]:
            continue
        state = _parse(store.read(f"{FOLDER}/{name}"))
        if stopped and name.startswith(stopped) and state.failure is None:
            state.in_flight, state.alone = [], []  # it was told to stop
        state.charge(rows)
        for key, deaths in state.rows.items():
            seen = Deaths(**deaths)
            if seen.total > rows.get(key, Deaths()).total:
                rows[key] = seen
    rows = {key: deaths for key, deaths in rows.items() if not is_done(key)}
    if names or rows or before["rows"]:
        content = {"folded": names, "rows": {k: asdict(d) for k, d in rows.items()}}
        store.write(f"{FOLDER}/{_BEFORE}", json.dumps(content).encode())
    for name in (*names, _STOPPED):
        store.delete(f"{FOLDER}/{name}")
    return rows


def prepare_folder(store: Store) -> None:
    """Make the folder where there are folders."""
    if store.filesystem.type_name in ("local", "hdfs"):
        store.filesystem.create_dir(store.path(FOLDER), recursive=True)


def note_stop(store: Store, run: str) -> None:
    """The actors of this run end because somebody wants it: no row is to blame."""
    store.write(f"{FOLDER}/{_STOPPED}", json.dumps({"run": run}).encode())


def clear(store: Store) -> None:
    """Every row is committed: nothing needs to be remembered."""
    for name in store.names(_SUFFIX, FOLDER):
        store.delete(f"{FOLDER}/{name}")
