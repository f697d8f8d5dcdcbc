"""How an actor outlives its engine: the record, the guard, and loading that is tried again.

An engine that dies takes its process with it, at once and by `os._exit`: Ray then restarts the
actor and runs its blocks again, which it does not after an exception or `exit_actor()`. The actor's
record of attempts (`attempts`) tells the new process what has happened.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol

from admg.request import Request
from pipeline.attempts import AttemptRecord, Failure, History
from pipeline.engine_loop import EngineDied, EngineLoop
from pipeline.quarantine import Rules
from pipeline.reasons import is_without_device
from pipeline.storage import Store
from pipeline.watchdog import Watched

# Loads in one process, and processes in a row without an engine, before an actor gives up.
_TRIES = 2
_PROCESSES = 3
_PAUSE_SECONDS = 1.0
_PARK_SECONDS = 60.0
# More is no number for a timer.
_LONGEST_SECONDS = 1e9
_STDERR = 2


class Others(Protocol):
    """What is known of the actors of a run."""

    def others_work(self) -> bool:
        """Whether any has loaded its model."""

    def others_left(self, without: str | None = None) -> bool:
        """Whether any has a GPU, or may still find its own; the actor `without` has none."""


@dataclass(frozen=True, slots=True)
class Safety:
    """What an actor needs to survive its engine: a small value, sent to each of them.

    `earlier` gives the deaths that earlier runs saw; `others` knows how the other actors of this
    run fare.
    """

    store: Store
    run: str
    rules: Rules
    earlier: Callable[[], History] = History
    others: Others | None = None

    def record(self, actor: str) -> AttemptRecord:
        """The record of this actor, its predecessors' deaths charged.

        Raises:
            EngineDied: process after process has died before it had an engine.
        """
        record = AttemptRecord(self.store, f"{self.run}-{actor}", self.earlier())
        if record.loads > _PROCESSES:
            raise EngineDied(
                "the model could not be loaded: the process that loads it died "
                f"{_PROCESSES} times in a row"
            )
        return record

    def others_go_on(self, actor: str, death: EngineDied) -> bool:
        """Whether others work while this actor, which could not load, waits.

        Where its GPU is lost, that is no sign for them, who may take their time to load.
        """
        if self.others is None:
            return False
        if is_without_device(death):
            return self.others.others_left(without=actor)
        return self.others.others_work()


@dataclass(frozen=True, slots=True)
class ActorGuard:
    """The engine's death is the process's; the record gets the last word.

    With `hard`, a process whose threads all stand still ends too, and then without a word: native
    code that hangs may hold Python's lock, and the watchdog with it.
    """

    record: AttemptRecord
    rules: Rules
    hard: bool = False

    def watched(self, requests: Sequence[Request], running: Sequence[Watched]) -> list[Watched]:
        """The rows' deadlines, from now; each may have to wait for any of the others."""
        deadline, now = self.rules.deadline, time.monotonic()
        own = [deadline(len(r.prompt_token_ids), r.sampling.max_tokens) for r in requests]
        ahead = len(running) + len(requests) - 1
        turns = -(-ahead // self.rules.max_num_seqs)
        waits = turns * max((*own, *(w.seconds for w in running)), default=0.0)
        return [
            Watched(r.key, now, seconds, waits) for r, seconds in zip(requests, own, strict=True)
        ]

    def expect(self, seconds: float | None) -> None:
        """End the process where this is not called again in twice the time; None: never.

        Twice, for the watchdog comes first wherever it can.
        """
        if not self.hard:
            return
        if seconds is None:
            faulthandler.cancel_dump_traceback_later()
        else:
            later = min(2 * seconds, _LONGEST_SECONDS)
            faulthandler.dump_traceback_later(later, exit=True, file=_STDERR)

    def alone(self, keys: Sequence[str] | None) -> None:
        """Put it on record before it is so."""
        self.record.alone(keys)

    def died(self, failure: Failure) -> NoReturn:
        """Leave."""
        self.expect(None)  # the storage may take its time
        try:
            self.record.died(failure)
        finally:
            leave(failure.message)


def leave(why: str) -> NoReturn:
    """End this process now, whatever its other threads do; Ray's log of the worker says why."""
    try:
        sys.stderr.write(f"leaving: {why}\n")
        sys.stderr.flush()
    finally:
        os._exit(1)


def load(
    new_loop: Callable[[], EngineLoop],
    restarted: bool = False,
    processes: int = 1,
    others_go_on: Callable[[EngineDied], bool] = lambda _: False,
) -> EngineLoop:
    """A loop with its engine. A load that fails is tried again.

    An actor that was restarted has blocks that nobody else can take over, so it leaves, and may
    come back on another machine. A new actor has none: while others go on, it keeps out of their
    way and tries again now and then. `processes` counts those of this actor in a row that have not
    come to have an engine.

    Raises:
        EngineDied: no load has worked and none is likely to.
    """
    tries = 0
    while True:
        tries += 1
        loop = new_loop()
        try:
            loop.wait_loaded()
            return loop
        except EngineDied as death:
            pause = _PAUSE_SECONDS
            if tries >= _TRIES:
                if restarted and processes < _PROCESSES:
                    leave(str(death))
                # Asked in any case: who asks tells the others what it lacks.
                if not others_go_on(death) or restarted:
                    raise
                pause = _PARK_SECONDS
        time.sleep(pause)


@dataclass(frozen=True, slots=True)
class Identity:
    """This actor's id, which stays when it is restarted, and whether it was.

    Outside of Ray it is the process's.
    """

    name: str
    restarted: bool = False
    in_ray: bool = False


def identity() -> Identity:
    """Who this is."""
    import ray

    actor = ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None
    if not actor:
        return Identity(str(os.getpid()))
    return Identity(actor, ray.get_runtime_context().was_current_actor_reconstructed, in_ray=True)
