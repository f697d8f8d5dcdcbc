"""The thread around an engine: who goes in when, with whom, and what its death means."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future

import pytest

from admg.config import SamplingParams
from admg.request import Completion, Request
from pipeline.attempts import Failure
from pipeline.decode import all_of
from pipeline.engine_loop import EngineDied, EngineLoop
from pipeline.watchdog import Watched
from tests.pipeline.faults.processes import program
from tests.pipeline.standin import StandIn, StandInEngine

PARAMS = SamplingParams(max_tokens=12)


def request(name: str) -> Request:
    return Request([256, *name.encode()], PARAMS, name)


class Recording(StandInEngine):
    """Notes who is in the engine at each step, and how many wait when more come."""

    def __init__(self, factory: StandIn) -> None:
        super().__init__(factory)
        self.together: list[set[str]] = []
        self.waiting_at_submit: dict[str, int] = {}

    def submit(self, request: Request) -> int:
        self.waiting_at_submit[request.key] = len(self._waiting)
        return super().submit(request)

    def step(self) -> list[Completion]:
        inside = [r for r, _ in self._running.values()] + [r for _, r in self._waiting]
        self.together.append({r.key for r in inside})
        return super().step()


class Notes:
    """A guard that only writes down what it is told."""

    def __init__(self) -> None:
        self.alone_calls: list[tuple[str, ...] | None] = []
        self.failure: Failure | None = None
        self.dead = threading.Event()

    def watched(self, requests: Sequence[Request], running: Sequence[Watched]) -> list[Watched]:
        return [Watched(request.key, 0.0, 1e12) for request in requests]

    def expect(self, seconds: float | None) -> None:
        pass

    def alone(self, keys: Sequence[str] | None) -> None:
        self.alone_calls.append(None if keys is None else tuple(keys))

    def died(self, failure: Failure) -> None:
        self.failure = failure
        self.dead.set()


def test_suspects_go_first_and_share_the_engine_with_nobody_else() -> None:
    engine, notes = Recording(StandIn()), Notes()
    loop = EngineLoop(lambda: engine, None, notes)
    company = {"a": None, "b": 1, "c": 2, "d": None, "e": 2, "f": 2, "g": 1}
    futures = loop.submit([(request(name), size) for name, size in company.items()])
    assert [f.result(timeout=30).key for f in futures] == list(company)
    # The last word, that others may come, follows when the last of them has ended.
    more = loop.submit([(request("h"), None)])
    more[0].result(timeout=30)
    apart = [("b",), ("g",), ("c", "e"), ("f",), None]
    assert notes.alone_calls == apart
    groups = [{"b"}, {"g"}, {"c", "e"}, {"f"}, {"a", "d"}, {"h"}]
    assert all(any(inside <= group for group in groups) for inside in engine.together)


def test_closed_groups_are_alone_but_no_suspects() -> None:
    """One after another, behind the suspects; the record knows of these alone."""
    engine, notes = Recording(StandIn(max_num_seqs=2)), Notes()
    loop = EngineLoop(lambda: engine, None, notes)
    groups = [[request(f"{name}{i}") for i in range(3)] for name in ("once ", "again ")]
    futures = loop.submit([(request("suspect"), 1), (request("usual"), None)])
    futures += [f for group in loop.submit_closed(groups) for f in group]
    futures += loop.submit([(request("later"), None)])
    for future in futures:
        future.result(timeout=30)
    keys = [{r.key for r in group} for group in groups]
    apart = [{"suspect"}, *keys, {"usual", "later"}]
    seen = [
        next(i for i, group in enumerate(apart) if inside <= group) for inside in engine.together
    ]
    assert set(seen) == {0, 1, 2, 3}
    assert [i for i in seen if i in (1, 2)] == sorted(i for i in seen if i in (1, 2))
    assert notes.alone_calls == [("suspect",), None]


def test_a_group_comes_when_all_of_the_one_before_have_a_place() -> None:
    """So nobody waits for ever behind longer ones that keep coming."""
    engine = Recording(StandIn(max_num_seqs=2, step_seconds=0.001))
    loop = EngineLoop(lambda: engine)
    groups = [[f"{g}-{i}" for i in range(5)] for g in range(4)]
    futures = [f for group in groups for f in loop.submit([(request(n), None) for n in group])]
    for future in futures:
        future.result(timeout=30)
    assert [engine.waiting_at_submit[group[0]] for group in groups] == [0, 0, 0, 0]
    assert max(len(inside) for inside in engine.together) <= 2 + 5


def test_groups_that_have_come_fill_the_places_together() -> None:
    """What came while the model was loaded starts at once, and not a group a round."""
    engine, come = Recording(StandIn(max_num_seqs=4)), threading.Event()

    def build() -> Recording:
        assert come.wait(timeout=30)
        return engine

    loop = EngineLoop(build, places=4)
    groups = [[f"{g}-{i}" for i in range(3)] for g in range(4)]
    futures = [f for group in groups for f in loop.submit([(request(n), None) for n in group])]
    come.set()
    for future in futures:
        future.result(timeout=30)
    assert engine.together[0] == {*groups[0], *groups[1]}
    # The third has the places that those two leave, and the fourth those that come free then.
    waiting = [engine.waiting_at_submit[group[0]] for group in groups]
    assert waiting == [0, 3, 0, 0]


def test_a_death_names_the_rows_that_were_inside() -> None:
    class Dying(StandInEngine):
        def step(self) -> list[Completion]:
            super().step()
            raise RuntimeError("broke")

    notes = Notes()
    loop = EngineLoop(lambda: Dying(StandIn()), None, notes)
    futures = loop.submit([(request("aa"), None), (request("bb"), None)])
    for future in futures:
        with pytest.raises(EngineDied, match="the engine died: RuntimeError: broke"):
            future.result(timeout=30)
    assert notes.dead.wait(timeout=30)
    failure = Failure("crashed", "the engine died: RuntimeError: broke", ("aa", "bb"))
    assert notes.failure == failure


HOLDS_THE_LOCK = """
import ctypes
from pipeline.engine_loop import EngineLoop
from pipeline.quarantine import Rules
from pipeline.survival import ActorGuard
from tests.pipeline.standin import StandIn, StandInEngine
from tests.pipeline.test_engine_loop import request

class Hanging(StandInEngine):
    def step(self):
        ctypes.PyDLL(None).sleep(3600)

guard = ActorGuard(None, Rules(2, 16, 0.05, 0.01), hard=True)
loop = EngineLoop(lambda: Hanging(StandIn()), None, guard, watch_seconds=0.01)
loop.submit([(request("row"), None)])[0].result()
"""


@pytest.mark.timeout(60)
def test_native_code_that_hangs_with_pythons_lock_ends_the_process() -> None:
    with program(HOLDS_THE_LOCK) as process:
        words, _ = process.communicate(timeout=50)
    assert process.returncode == 1
    assert "Timeout (" in words and "in step" in words


class Late(Notes):
    """Rows may take as long as the number in their name says."""

    def watched(self, requests: Sequence[Request], running: Sequence[Watched]) -> list[Watched]:
        now = time.monotonic()
        return [Watched(r.key, now, float(r.key.split()[1])) for r in requests]

    def died(self, failure: Failure) -> None:
        if self.failure is None:
            super().died(failure)


class Endless(StandInEngine):
    """It goes on, but these rows do not end; the others do. Until it is noted to be dead."""

    def __init__(self, notes: Notes) -> None:
        super().__init__(StandIn())
        self._notes = notes

    def step(self) -> list[Completion]:
        if self._notes.dead.wait(timeout=0.001):
            raise RuntimeError("the thread would go on for all tests that follow")
        self._made += 1
        while self._waiting:
            handle, request = self._waiting.popleft()
            self._running[handle] = (request, [])
        done = [h for h, (r, _) in self._running.items() if r.key.startswith("short")]
        return [self._complete(h, self._running.pop(h)[0], [97]) for h in done]


@pytest.mark.parametrize(
    ("names", "alone"),
    [
        (["slow 0.05"], True),
        (["slow 0.05", "slower 1e9"], False),
        # Late when it is the last one, but not for itself.
        (["slow 0.05", "short 1e9"], False),
    ],
)
def test_only_a_row_that_had_the_engine_to_itself_is_late_alone(
    names: list[str], alone: bool
) -> None:
    notes = Late()
    loop = EngineLoop(lambda: Endless(notes), None, notes, watch_seconds=0.01)
    futures = loop.submit([(request(name), None) for name in names])
    with pytest.raises(EngineDied):
        futures[0].result(timeout=30)
    assert notes.failure is not None
    assert (notes.failure.rows, notes.failure.alone) == (("slow 0.05",), alone)
    assert notes.failure.message.endswith("it does not end")


def test_many_futures_are_one() -> None:
    assert all_of([]).result(timeout=0) == []
    futures: list[Future[int]] = [Future() for _ in range(3)]
    futures[0].set_result(0)  # before anybody waits for it
    whole = all_of(futures)
    futures[2].set_result(2)
    assert not whole.done()
    futures[1].set_result(1)
    assert whole.result(timeout=0) == [0, 1, 2]


def test_the_first_exception_among_futures_is_that_of_all() -> None:
    """A death must not wait for rows that nobody will ever end."""
    futures: list[Future[int]] = [Future() for _ in range(3)]
    whole = all_of(futures)
    futures[1].set_exception(EngineDied("first"))
    with pytest.raises(EngineDied, match="first"):
        whole.result(timeout=0)
    futures[0].set_exception(EngineDied("second"))
    assert str(whole.exception(timeout=0)) == "first"
