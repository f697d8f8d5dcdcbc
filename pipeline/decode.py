"""The Decode stage: one engine, fed by several calls at once.

Ray calls the actor up to `Layout.in_flight` times at once, each time with about a batch of rows.
Each call hands its rows to the engine's thread and waits for its own, so the batch is refilled
across calls and never drains at the end of one.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import pyarrow as pa

from admg.config import SamplingParams
from admg.explanation import Explanation
from admg.request import Completion, Request, Score
from pipeline.attempts import Deaths
from pipeline.audit import Audit, compared
from pipeline.counters import Counters
from pipeline.engine_loop import EngineLoop
from pipeline.errors import MODEL_OUTPUT_INVALID, RowError
from pipeline.factory import EngineFactory, EngineLike
from pipeline.parameters import laws_of, parameters_in
from pipeline.priority import take_precedence
from pipeline.schema import (
    ERROR_CODE,
    ERROR_MESSAGE,
    PROMPT_TOKEN_IDS,
    ROW_KEY,
    RowResult,
    result_columns,
)
from pipeline.stages import errors_of
from pipeline.survival import ActorGuard, Safety, identity, load

T = TypeVar("T")
Report = Callable[[str, Counters], None]
Explain = Callable[[str, Explanation], None]


class Decode:
    """The actor: prompt token ids -> completions with statistics.

    Args:
        factory: builds the engine.
        sampling: the law of all rows.
        report: is told about once a second what this actor has done.
        safety: None keeps no record, and an engine that dies raises `EngineDied` from the call.
        audit: the rows to decode again plainly.
        explain: is told at the end of each call what drafts were chosen by, where that was chosen.

    Raises:
        EngineDied: the model could not be loaded.
    """

    def __init__(
        self,
        factory: EngineFactory,
        sampling: SamplingParams,
        report: Report | None = None,
        safety: Safety | None = None,
        audit: Audit | None = None,
        explain: Explain | None = None,
    ) -> None:
        self._explain = explain
        self._factory, self._sampling, self._report = factory, sampling, report
        self._identity = identity()
        self._name = self._identity.name
        self._safety, self._audit = safety, audit or Audit()
        self._record = None if safety is None else safety.record(self._name)
        if safety is None or self._record is None:
            self._loop = load(self._new_loop)
        else:
            others = partial(safety.others_go_on, self._name)
            restarted = self._identity.restarted
            self._loop = load(self._new_loop, restarted, self._record.loads, others)
            self._record.loaded()

    def _new_loop(self) -> EngineLoop:
        def report(counters: Counters) -> None:
            if self._report is not None:
                self._report(f"{self._name}/{os.getpid()}", counters)

        if self._safety is None or self._record is None:
            return EngineLoop(self._factory.build, report)
        rules = self._safety.rules
        batch = rules.batch(self._record.full_ooms)

        def build() -> EngineLike:
            take_precedence()
            smaller = batch < rules.max_num_seqs
            return self._factory.build(batch) if smaller else self._factory.build()

        every = min(1.0, rules.row_seconds / 4)
        guard = ActorGuard(self._record, rules, hard=self._identity.in_ray)
        return EngineLoop(build, report, guard, every, batch)

    async def __call__(self, table: pa.Table) -> AsyncIterator[pa.Table]:
        """Decode the rows of a call; they come back in their order, once each."""
        keys = [key.hex() for key in table[ROW_KEY].to_pylist()]
        results = [self._before(key, e) for key, e in zip(keys, errors_of(table), strict=True)]
        todo = [i for i, result in enumerate(results) if result.error is None]
        self._loop.count_error_rows([r.error.code for r in results if r.error is not None])
        together = [keys[i] for i in todo if self._company(keys[i]) is None]
        if self._record is not None and todo:
            await asyncio.to_thread(self._record.begin, together)
        done = await self._decoded(table, todo, keys)
        for i, completion in zip(todo, done, strict=True):
            results[i] = row_result(completion, 1 + self._deaths(keys[i]).total)
        if self._record is not None and todo:
            await asyncio.to_thread(self._record.end, keys)
        if self._explain is not None and self._loop.explanation is not None:
            self._explain(f"{self._name}/{os.getpid()}", self._loop.explanation)
        yield with_results(table, results)

    async def _decoded(self, table: pa.Table, todo: list[int], keys: list[str]) -> list[Completion]:
        token_ids: list[list[int]] = table[PROMPT_TOKEN_IDS].to_pylist()
        own = parameters_in(table)
        laws = laws_of([own[i] for i in todo], self._sampling)
        requests = {
            i: Request(token_ids[i], law, keys[i]) for i, law in zip(todo, laws, strict=True)
        }
        # Suspects are not audited: they go with others by rules of their own.
        fit = {i for i in todo if self._company(keys[i]) is None}
        first, again = self._submit(requests, self._audit.groups(keys, fit))
        await asyncio.wrap_future(all_of([*first.values(), *again.values()]))
        done = {i: future.result() for i, future in first.items()}
        twice = {i: future.result() for i, future in again.items()}
        scores = await self._scores(requests, done, twice)
        done |= {i: compared(done[i], twice[i], scores.get(i)) for i in twice}
        return [done[i] for i in todo]

    async def _scores(
        self,
        requests: dict[int, Request],
        first: dict[int, Completion],
        again: dict[int, Completion],
    ) -> dict[int, Score | None]:
        """Those of the rows whose tokens differ, in a group of their own."""
        asked = {i: self._audit.to_score(requests[i], first[i], again[i]) for i in again}
        forced = {i: request for i, request in asked.items() if request is not None}
        if not forced:
            return {}
        (futures,) = self._loop.submit_closed([list(forced.values())])
        scored = await asyncio.wrap_future(all_of(futures))
        return {i: completion.score for i, completion in zip(forced, scored, strict=True)}

    def _submit(
        self, requests: dict[int, Request], groups: list[list[int]]
    ) -> tuple[dict[int, Future[Completion]], dict[int, Future[Completion]]]:
        """Queue all requests, and those in the groups a second time, with drafting forbidden."""
        audited = set(chain(*groups))
        usual = [i for i in requests if i not in audited]
        rows = [(requests[i], self._company(requests[i].key)) for i in usual]
        first = dict(zip(usual, self._loop.submit(rows), strict=True))
        again: dict[int, Future[Completion]] = {}
        for group in groups:
            once = [requests[i] for i in group]
            futures = self._loop.submit_closed([once, [replace(r, draft=False) for r in once]])
            first |= zip(group, futures[0], strict=True)
            again |= zip(group, futures[1], strict=True)
        return first, again

    def _deaths(self, key: str) -> Deaths:
        return Deaths() if self._record is None else self._record.deaths(key)

    def _company(self, key: str) -> int | None:
        return None if self._safety is None else self._safety.rules.company(self._deaths(key))

    def _before(self, key: str, error: RowError | None) -> RowResult:
        """A row that is an error already, or is guilty; or the empty result of one to decode."""
        if error is not None or self._safety is None or self._record is None:
            return RowResult(error=error)
        deaths = self._record.deaths(key)
        verdict = self._safety.rules.verdict(deaths, self._record.other_deaths(key))
        if verdict is None:
            return RowResult()
        self._record.find_guilty(key)
        return RowResult(error=verdict, finish_reason="error", attempts=deaths.total)


def all_of(futures: Sequence[Future[T]]) -> Future[list[T]]:
    """The results of all futures once they are there, or the first exception.

    An event loop that waits for it is woken once a block, and not once a row.
    """
    whole: Future[list[T]] = Future()
    whole.set_running_or_notify_cancel()  # from here on nobody can cancel it
    lock, left = threading.Lock(), len(futures)

    def note(done: Future[T]) -> None:
        nonlocal left
        with lock:
            left -= 1
            error = done.exception()
            if whole.done():
                return
            if error is not None:
                whole.set_exception(error)
            elif not left:
                whole.set_result([future.result() for future in futures])

    for future in futures:
        future.add_done_callback(note)
    if not futures:
        whole.set_result([])
    return whole


def row_result(completion: Completion, attempts: int = 1) -> RowResult:
    """A finished sequence as the row's result."""
    if completion.finish_reason == "error":
        code = completion.error_code or MODEL_OUTPUT_INVALID
        message = completion.error_message or "the engine gives no reason"
        return RowResult(error=RowError(code, message), finish_reason="error", attempts=attempts)
    return RowResult(
        token_ids=completion.token_ids,
        text=completion.text,
        finish_reason=completion.finish_reason,
        stats=completion.stats,
        attempts=attempts,
    )


def with_results(table: pa.Table, results: list[RowResult]) -> pa.Table:
    """The table with Decode's columns in place of the prompt's token ids and the errors so far."""
    out: Any = table.drop_columns([PROMPT_TOKEN_IDS, ERROR_CODE, ERROR_MESSAGE])
    for name, column in result_columns(results).items():
        out = out.append_column(name, column)
    return out
