"""Which rows were in an engine when it died: a record that outlives the process.

Each Decode actor keeps one small object in the output's `_admg/attempts/`. It names the rows that
may be in the engine, and is written before they get there. A process that starts and finds the
record of the actor that it replaces knows that its predecessor died, and with which rows; a run
that starts finds the records of all actors of the runs before it. What follows from a row's deaths
is decided in `quarantine`; what one run leaves to the next, in `history`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from pipeline.errors import CRASHED, DEADLINE, OUT_OF_MEMORY
from pipeline.storage import STATE, Store

FOLDER = f"{STATE}/attempts"
SUFFIX = ".json"
# A record whose writer hangs in the storage must not keep a dead engine alive.
_LOCK_SECONDS = 20.0
NO_WORD = "the process ended without a word: killed, out of host memory, or a fault in native code"


@dataclass(frozen=True, slots=True)
class Deaths:
    """How often a row was in an engine that died, by cause, and what was said the last time.

    `alone` counts the crashes and times without memory in which the engine held no other row,
    `late_alone` the deadlines that it missed with the engine to itself. `lost` counts the whole
    runs that ended without a word while it was in flight.
    """

    crashes: int = 0
    ooms: int = 0
    deadlines: int = 0
    lost: int = 0
    alone: int = 0
    late_alone: int = 0
    code: str = ""
    message: str = ""

    @property
    def total(self) -> int:
        """Attempts that ended in a death."""
        return self.crashes + self.ooms + self.deadlines + self.lost

    def plus(self, failure: Failure) -> Deaths:
        """With one more."""
        late = failure.code == DEADLINE
        return Deaths(
            self.crashes + (failure.code not in (OUT_OF_MEMORY, DEADLINE)),
            self.ooms + (failure.code == OUT_OF_MEMORY),
            self.deadlines + late,
            self.lost,
            self.alone + (failure.alone and not late),
            self.late_alone + (failure.alone and late),
            failure.code,
            failure.message,
        )

    def plus_lost(self) -> Deaths:
        """With one more run that ended as a whole, which says little of a row."""
        return replace(self, lost=self.lost + 1, code=CRASHED, message=NO_WORD)


NO_DEATHS = Deaths()


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an engine's process leaves, and the keys of the rows that may be the reason.

    `alone` says that it is one row, and that no other can have had a part in it.
    """

    code: str
    message: str
    rows: tuple[str, ...]
    alone: bool = False


@dataclass(frozen=True, slots=True)
class History:
    """What earlier runs saw: the deaths of rows, of one actor's processes, and those explained."""

    rows: Mapping[str, Deaths] = field(default_factory=dict)
    deaths: int = 0
    explained: int = 0


@dataclass(slots=True)
class State:
    """What one actor's object holds.

    `full` has the rows of each batch under no suspicion that ran out of memory, but for those
    batches that held a guilty row.
    """

    in_flight: list[str] = field(default_factory=list)
    alone: list[str] | None = None
    failure: dict[str, Any] | None = None
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    loads: int = 0
    full: list[list[str]] = field(default_factory=list)
    deaths: int = 0
    explained: int = 0
    guilty: list[str] = field(default_factory=list)

    def charge(self, earlier: Mapping[str, Deaths], whole_run: bool = False) -> None:
        """Turn what a dead process left behind into deaths of its rows.

        Where the whole run has ended (`whole_run`), a process that left no last word has most
        likely died of that, and not of its rows.
        """
        suspects = self.in_flight if self.alone is None else self.alone
        failure = Failure(CRASHED, NO_WORD, tuple(suspects), len(set(suspects)) == 1)
        lost = whole_run and self.failure is None
        if self.failure is not None:
            failure = Failure(**{**self.failure, "rows": tuple(self.failure["rows"])})
            if failure.code == OUT_OF_MEMORY and self.alone is None:
                self.full.append(list(failure.rows))
        self.deaths += bool(failure.rows)
        for key in dict.fromkeys(failure.rows):  # Ray may run a call twice in one process
            known = self.known(key, earlier)
            self.rows[key] = asdict(known.plus_lost() if lost else known.plus(failure))
        self.in_flight, self.alone, self.failure = [], None, None

    def blame(self, key: str) -> None:
        """It was this row."""
        self.guilty.append(key)
        self.full = [rows for rows in self.full if key not in rows]

    def known(self, key: str, earlier: Mapping[str, Deaths]) -> Deaths:
        """What is known of a row."""
        return Deaths(**self.rows[key]) if key in self.rows else earlier.get(key, NO_DEATHS)

    def all_explained(self, earlier: Mapping[str, Deaths], but: str = "") -> int:
        """Deaths that guilty rows have caused."""
        guilty = (key for key in self.guilty if key != but)
        return self.explained + sum(self.known(key, earlier).total for key in guilty)


class AttemptRecord:
    """One actor's record. Every change is in the storage when its method returns.

    Args:
        store: the output.
        name: stays the same when the actor is restarted.
        earlier: deaths that earlier runs saw.

    Raises:
        OSError: from any method, where the storage refuses.
    """

    def __init__(self, store: Store, name: str, earlier: History | None = None) -> None:
        self._store = store
        self._name = f"{FOLDER}/{name}{SUFFIX}"
        self._lock = threading.Lock()
        known = History() if earlier is None else earlier
        self._earlier = known.rows
        found = store.exists(self._name)
        new = State(deaths=known.deaths, explained=known.explained)
        self._state = parse_state(store.read(self._name)) if found else new
        self._state.charge(self._earlier)
        self._state.loads += 1
        self._write()

    @property
    def loads(self) -> int:
        """Processes in a row, this one included, that have not come to have an engine."""
        return self._state.loads

    @property
    def full_ooms(self) -> int:
        """How often a batch of rows that were under no suspicion ran out of memory.

        Those that a guilty row explains say nothing of the batch.
        """
        return len(self._state.full)

    def deaths(self, key: str) -> Deaths:
        """What is known of a row."""
        return self._state.known(key, self._earlier)

    def other_deaths(self, key: str) -> int:
        """Deaths that neither this row nor one that was found guilty can have caused."""
        known = self._state.all_explained(self._earlier, but=key) + self.deaths(key).total
        return max(0, self._state.deaths - known)

    def find_guilty(self, key: str) -> None:
        """This row is to blame for its deaths; it is not forgotten."""
        if key not in self._state.guilty:
            self._change(lambda s: s.blame(key))

    def loaded(self) -> None:
        """The engine is there."""
        self._change(lambda s: setattr(s, "loads", 0))

    def begin(self, keys: Sequence[str]) -> None:
        """These rows may enter the engine from now on."""
        self._change(lambda s: setattr(s, "in_flight", list(dict.fromkeys([*s.in_flight, *keys]))))

    def end(self, keys: Sequence[str]) -> None:
        """These rows are done, and forgotten but for the guilty ones."""
        done, gone = set(keys), set(keys).difference(self._state.guilty)

        def change(s: State) -> None:
            s.in_flight = [k for k in s.in_flight if k not in done]
            s.rows = {k: v for k, v in s.rows.items() if k not in gone}

        self._change(change)

    def alone(self, keys: Sequence[str] | None) -> None:
        """The engine holds nothing but these rows; None: whatever is in flight again."""
        self._change(lambda s: setattr(s, "alone", None if keys is None else list(keys)))

    def died(self, failure: Failure) -> None:
        """The last word of a process that is about to leave."""
        self._change(lambda s: setattr(s, "failure", asdict(failure)), _LOCK_SECONDS)

    def _change(self, change: Callable[[State], object], patience: float = -1) -> None:
        if not self._lock.acquire(timeout=patience):
            raise TimeoutError("the record of attempts is being written for too long")
        try:
            change(self._state)
            self._write()
        finally:
            self._lock.release()

    def _write(self) -> None:
        self._store.write(self._name, json.dumps(asdict(self._state)).encode())


def parse_state(data: bytes) -> State:
    """An object's content, of this version or of an older one that left it behind."""
    names = {f.name for f in fields(State)}
    return State(**{name: value for name, value in json.loads(data).items() if name in names})
