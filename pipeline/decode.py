"""The Decode stage: one engine in one thread, fed by several blocks at once.

Ray calls the actor with up to `RunConfig.blocks_in_flight` blocks at the same time. Each call hands
its rows to the engine's thread and waits for its own, so the batch is refilled across blocks and
never drains at a block's end.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import Any

import pyarrow as pa

from admg.config import SamplingParams
from admg.request import Completion, Request
from pipeline.errors import MODEL_OUTPUT_INVALID, RowError
from pipeline.factory import EngineFactory, EngineLike
from pipeline.progress import Counters
from pipeline.schema import (
    ERROR_CODE,
    ERROR_MESSAGE,
    PROMPT_TOKEN_IDS,
    ROW_KEY,
    RowResult,
    result_columns,
)
from pipeline.stages import errors_of

Report = Callable[[str, Counters], None]
_REPORT_SECONDS = 1.0


class EngineDied(RuntimeError):
    """The engine raised, or never came to be; the rows that it held are undone, not lost."""


class EngineLoop:
    """An engine in a thread of its own, which builds it too: torch keeps settings by thread.

    Args:
        build: makes the engine. A model that fails to load is a death like any other.
        report: called from that thread about once a second with what has been done so far.
    """

    def __init__(self, build: Callable[[], EngineLike], report: Report | None = None) -> None:
        self._build = build
        self._report = report
        self._inbox: queue.SimpleQueue[tuple[Request, Future[Completion]]] = queue.SimpleQueue()
        self._running: dict[int, Future[Completion]] = {}
        self._counters = Counters()
        self._death: EngineDied | None = None
        self._lock = threading.Lock()
        self._name = uuid.uuid4().hex
        self._reported = 0.0
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    def submit(self, request: Request) -> Future[Completion]:
        """Queue a sequence. The future raises `EngineDied` when the engine does, also after it."""
        future: Future[Completion] = Future()
        with self._lock:
            if self._death is not None:
                future.set_exception(self._death)
            else:
                self._inbox.put((request, future))
        return future

    def count_error_rows(self, rows: int) -> None:
        """Count rows that never reach the engine, so that progress adds up."""
        with self._lock:
            self._counters = self._counters.plus_errors(rows)

    def _run(self) -> None:
        doing = "the model could not be loaded"
        try:
            engine = self._build()
            doing = "the engine died"
            self._send_report()
            while True:
                self._take(engine)
                if engine.has_work:
                    for completion in engine.step():
                        self._finish(completion)
                if time.monotonic() - self._reported >= _REPORT_SECONDS:
                    self._send_report()
        except BaseException as error:  # whatever it was, rows must not wait for it for ever
            self._die(EngineDied(f"{doing}: {type(error).__name__}: {error}"))

    def _take(self, engine: EngineLike) -> None:
        """Move what is queued into the engine; wait only when there is nothing else to do."""
        while True:
            idle = not engine.has_work
            try:
                # The timeout lets an idle engine send its last counters.
                wait = _REPORT_SECONDS if idle else None
                request, future = self._inbox.get(block=idle, timeout=wait)
            except queue.Empty:
                return
            # Known to `_die` before the engine sees it: a submit that raises must not lose it.
            self._running[-1] = future
            handle = engine.submit(request)
            self._running[handle] = self._running.pop(-1)

    def _finish(self, completion: Completion) -> None:
        with self._lock:
            self._counters = self._counters.plus(completion)
        self._running.pop(completion.handle).set_result(completion)

    def _send_report(self) -> None:
        self._reported = time.monotonic()
        if self._report is not None:
            self._report(self._name, self._counters)

    def _die(self, death: EngineDied) -> None:
        with self._lock:
            self._death = death
        waiting = list(self._running.values())
        while not self._inbox.empty():
            waiting.append(self._inbox.get()[1])
        for future in waiting:
            future.set_exception(death)


def row_result(completion: Completion) -> RowResult:
    """A finished sequence as the row's result."""
    if completion.finish_reason == "error":
        code = completion.error_code or MODEL_OUTPUT_INVALID
        message = completion.error_message or "the engine gives no reason"
        return RowResult(error=RowError(code, message), finish_reason="error", attempts=1)
    return RowResult(
        token_ids=completion.token_ids,
        text=completion.text,
        finish_reason=completion.finish_reason,
        stats=completion.stats,
        attempts=1,
    )


class Decode:
    """The actor: prompt token ids -> completions with statistics."""

    def __init__(
        self, factory: EngineFactory, sampling: SamplingParams, report: Report | None = None
    ) -> None:
        self._loop = EngineLoop(factory.build, report)
        self._sampling = sampling

    async def __call__(self, table: pa.Table) -> AsyncIterator[pa.Table]:
        """Decode one block; its rows come back in their order, once each."""
        waiting: dict[int, Future[Completion]] = {}
        results: list[RowResult] = []
        keys: list[bytes] = table[ROW_KEY].to_pylist()
        token_ids: list[list[int]] = table[PROMPT_TOKEN_IDS].to_pylist()
        for i, error in enumerate(errors_of(table)):
            results.append(RowResult(error=error))
            if error is None:
                request = Request(token_ids[i], self._sampling, keys[i].hex())
                waiting[i] = self._loop.submit(request)
        self._loop.count_error_rows(len(results) - len(waiting))
        done: list[Completion] = await asyncio.gather(*map(asyncio.wrap_future, waiting.values()))
        for i, completion in zip(waiting, done, strict=True):
            results[i] = row_result(completion)
        yield with_results(table, results)


def with_results(table: pa.Table, results: list[RowResult]) -> pa.Table:
    """The table with Decode's columns in place of the prompt's token ids and the errors so far."""
    out: Any = table.drop_columns([PROMPT_TOKEN_IDS, ERROR_CODE, ERROR_MESSAGE])
    for name, column in result_columns(results).items():
        out = out.append_column(name, column)
    return out
