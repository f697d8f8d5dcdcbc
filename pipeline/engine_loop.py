"""An engine in a thread of its own, fed by several calls at once."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

from admg.explanation import Explanation
from admg.request import Completion, Request
from pipeline.attempts import Failure
from pipeline.errors import DEADLINE
from pipeline.factory import EngineLike
from pipeline.quarantine import code_of, describe
from pipeline.reporter import Report, Reporter
from pipeline.watchdog import Watched, overdue, watch


class EngineDied(RuntimeError):
    """The engine raised, or never came to be; the rows that it held are undone, not lost."""


class Guard(Protocol):
    """What an engine's death means to those around it."""

    def watched(self, requests: Sequence[Request], running: Sequence[Watched]) -> list[Watched]:
        """How long each of these sequences may take, beside those that run or wait already."""

    def expect(self, seconds: float | None) -> None:
        """This is called again long before these seconds are over, or the engine hangs."""

    def alone(self, keys: Sequence[str] | None) -> None:
        """From now on the engine holds only these sequences; None: whatever comes."""

    def died(self, failure: Failure) -> None:
        """The engine is dead. Where the process should leave, this does not return."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A sequence on its way, and how many may be in the engine with it at most (None: any)."""

    request: Request
    future: Future[Completion]
    company: int | None


class EngineLoop:
    """Builds an engine in a thread, which torch wants for its settings, and keeps it busy.

    Sequences are taken in as they come, group after group: as many groups at once as fill the
    engine's places, and the next ones wait until every sequence of those has its place, so that
    none waits for ever behind longer ones. Sequences that need small company go first, when the
    engine is empty, then groups that want it for themselves, and the others wait until they are
    through.

    Args:
        build: makes the engine.
        report: called about once a second with what has been done so far.
        guard: is told of the engine's death; None: the futures alone are.
        places: that the engine has; 1 takes one group at a time.
    """

    def __init__(
        self,
        build: Callable[[], EngineLike],
        report: Report | None = None,
        guard: Guard | None = None,
        watch_seconds: float = 1.0,
        places: int = 1,
    ) -> None:
        self._build, self._guard, self._places = build, guard, places
        self._reporter = Reporter(report)
        self._loaded: Future[None] = Future()
        self._inbox: queue.SimpleQueue[tuple[list[Entry], bool]] = queue.SimpleQueue()
        self._groups: deque[list[Entry]] = deque()
        self._apart: list[Entry] = []
        self._closed: deque[list[Entry]] = deque()
        self._in_company, self._on_record = True, False
        self._repeats = False
        # Whether one that is in the engine has had another beside it.
        self._shared = False
        self._running: dict[int, tuple[Entry, Watched]] = {}
        self._death: EngineDied | None = None
        self._lock = threading.Lock()
        self._moved = time.monotonic()
        self._made: Any = None
        self.explanation: Explanation | None = None
        threading.Thread(target=self._run, name="engine", daemon=True).start()
        if guard is not None:
            watch(self._check, watch_seconds)

    def wait_loaded(self) -> None:
        """Return when the engine is there.

        Raises:
            EngineDied: it could not be built.
        """
        self._loaded.result()

    def submit(self, rows: Sequence[tuple[Request, int | None]]) -> list[Future[Completion]]:
        """Queue sequences, each with its company.

        The futures raise `EngineDied` when the engine does, also after it.
        """
        return self._queue([[Entry(request, Future(), company) for request, company in rows]])[0]

    def submit_closed(self, groups: Sequence[Sequence[Request]]) -> list[list[Future[Completion]]]:
        """Queue groups that go one after another, each with nobody else in the engine."""
        return self._queue([[Entry(r, Future(), None) for r in g] for g in groups], closed=True)

    def _queue(
        self, groups: list[list[Entry]], closed: bool = False
    ) -> list[list[Future[Completion]]]:
        for entry in chain(*groups):
            # From here on nobody can cancel it, as asyncio would when a neighbour fails.
            entry.future.set_running_or_notify_cancel()
        with self._lock:
            if self._death is None:
                for group in groups:
                    self._inbox.put((group, closed))
            else:
                for entry in chain(*groups):
                    entry.future.set_exception(self._death)
        return [[entry.future for entry in group] for group in groups]

    def count_error_rows(self, codes: Sequence[str]) -> None:
        """Count rows that never reach the engine, by their codes, so that progress adds up."""
        self._reporter.count_errors(codes)

    def _run(self) -> None:
        try:
            engine = self._build()
        except BaseException as error:
            death = EngineDied(f"the model could not be loaded: {type(error).__name__}: {error}")
            self._end(death)
            self._loaded.set_exception(death)
            return
        self._loaded.set_result(None)
        self._reporter.start(engine)
        try:
            while True:
                self._take(engine)
                if engine.has_work:
                    self._step(engine)
                self._note_movement(engine)
        except BaseException as error:  # whatever it was, rows must not wait for it for ever
            if self._guard is not None:
                keys = tuple({entry.request.key: 0 for entry, _ in self._running.values()})
                self._guard.died(Failure(code_of(error), describe(error), keys, len(keys) == 1))
            self._end(EngineDied(describe(error)))

    def _step(self, engine: EngineLike) -> None:
        with self._reporter.round(engine, self._repeats):
            done = engine.step()
            if done:
                self.explanation = engine.explain()  # before anybody hears of what is done
            for completion in done:
                self._finish(completion)

    def _take(self, engine: EngineLike) -> None:
        """Move what may go into the engine; wait only when there is nothing else to do."""
        known = engine.has_work or self._groups or self._apart or self._closed
        nothing = self._in_company and not known
        while True:
            try:
                group, closed = self._inbox.get(nothing)
            except queue.Empty:
                break
            nothing = False
            if closed:
                self._closed.append(group)
                continue
            self._apart += [e for e in group if e.company is not None]
            self._groups.append([e for e in group if e.company is None])
        waiting = self._apart or self._closed
        if (waiting or not self._in_company) and not engine.has_work:
            self._next_company(engine)
        if self._in_company and not waiting:
            self._fill(engine)

    def _fill(self, engine: EngineLike) -> None:
        """Let groups in for the free places, one in any case, if none waits for its place yet."""
        made = engine.counters
        if made.num_waiting:
            return
        held = made.num_running
        while self._groups:
            group = self._groups.popleft()
            self._enter(engine, group)
            held += len(group)
            if group and held >= self._places:
                return

    def _next_company(self, engine: EngineLike) -> None:
        """The next sequences that go together and with no others, or the end of that."""
        suspects = self._next_suspects()
        group = suspects or (self._closed.popleft() if self._closed else [])
        self._in_company = not group
        # What is decoded again is no progress.
        self._repeats = any(not e.request.draft for e in group)
        # Closed groups are no suspects: their deaths mean what those of a usual batch do.
        if self._guard is not None and (suspects or self._on_record):
            self._guard.alone([e.request.key for e in suspects] or None)
        self._on_record = bool(suspects)
        self._enter(engine, group)

    def _next_suspects(self) -> list[Entry]:
        """Those that need the smallest company, as many as may be together."""
        if not self._apart:
            return []
        self._apart.sort(key=lambda e: e.company or 0)
        size = self._apart[0].company or 1
        group = [e for e in self._apart[:size] if e.company == size]
        self._apart = self._apart[len(group) :]
        return group

    def _enter(self, engine: EngineLike, entries: list[Entry]) -> None:
        self._moved = now = time.monotonic()
        requests = [entry.request for entry in entries]
        if entries:
            self._shared = len(self._running) + len(entries) > 1
        watching = [Watched(request.key, now) for request in requests]
        if self._guard is not None:
            watching = self._guard.watched(requests, [w for _, w in self._running.values()])
        for entry, watched in zip(entries, watching, strict=True):
            # Known to `died` before the engine sees it: a submit that raises must not lose it.
            self._running[-1] = (entry, watched)
            handle = engine.submit(entry.request)
            self._running[handle] = self._running.pop(-1)
        self._expect()

    def _finish(self, completion: Completion) -> None:
        entry, _ = self._running.pop(completion.handle)
        self._moved = time.monotonic()
        if not self._repeats:
            self._reporter.count(completion)
        entry.future.set_result(completion)

    def _note_movement(self, engine: EngineLike) -> None:
        made = engine.counters
        if made != self._made:
            self._made, self._moved = made, time.monotonic()

    def _expect(self) -> None:
        if self._guard is not None:
            rows = [row.seconds for _, row in list(self._running.values())]
            self._guard.expect(max(rows, default=None))

    def _check(self) -> bool:
        """The watchdog's question; whether it should be asked again."""
        if self._death is not None:
            return False
        self._expect()
        watched = [row for _, row in list(self._running.values())]
        moved, now = self._moved, time.monotonic()
        late = overdue(watched, moved, now)
        if late and self._guard is not None:
            seconds = max(row.seconds for row in watched if row.key in late)
            words = "the engine stands still" if now - moved > seconds else "it does not end"
            message = f"not done after its {seconds:.0f} seconds: {words}"
            self._guard.died(Failure(DEADLINE, message, late, not self._shared))
        return True

    def _end(self, death: EngineDied) -> None:
        self._reporter.stop()
        with self._lock:
            self._death = death
        waiting = [entry for entry, _ in self._running.values()]
        while not self._inbox.empty():
            self._groups.append(self._inbox.get()[0])
        for group in (*self._groups, *self._closed, self._apart):
            waiting += group
        for entry in waiting:
            entry.future.set_exception(death)
