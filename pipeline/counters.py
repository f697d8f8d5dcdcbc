"""What Decode actors report of themselves, and the board that adds it up.

Reports are cheap: an actor sends its running totals about once a second to one small Ray actor,
the board, and waits for no answer; the driver reads the board.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

from admg.explanation import Explanation
from admg.request import Completion
from pipeline.errors import MODEL_OUTPUT_INVALID

# An actor that has said nothing for so long is gone, or its process has no breath left.
ALIVE_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Counters:
    """Running totals of one actor, or of several added up.

    `errors` counts error rows by code, as far as the actor was told the code.
    """

    rows: int = 0
    rows_error: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_spec_steps: int = 0
    spec_tokens: float = 0.0
    speedup_seconds: float = 0.0
    timed_seconds: float = 0.0
    audit_tokens: int = 0
    errors: dict[str, int] = field(default_factory=dict)

    def __add__(self, other: Counters) -> Counters:
        names = [f.name for f in fields(Counters) if f.name != "errors"]
        sums = {n: getattr(self, n) + getattr(other, n) for n in names}
        return Counters(**sums, errors=_added(self.errors, other.errors))

    def plus_errors(self, codes: Sequence[str]) -> Counters:
        """With error rows that the engine never saw, one for each code."""
        rows, failed = self.rows + len(codes), self.rows_error + len(codes)
        errors = _added(self.errors, Counter(codes))
        return replace(self, rows=rows, rows_error=failed, errors=errors)

    def plus(self, completion: Completion) -> Counters:
        """With one finished sequence."""
        s = completion.stats
        timed = s.decode_seconds if s.speedup is not None else 0.0
        failed = completion.finish_reason == "error"
        errors = self.errors
        if failed:
            errors = _added(errors, {completion.error_code or MODEL_OUTPUT_INVALID: 1})
        return replace(
            self,
            rows=self.rows + 1,
            rows_error=self.rows_error + failed,
            prompt_tokens=self.prompt_tokens + s.prompt_tokens,
            completion_tokens=self.completion_tokens + s.completion_tokens,
            num_spec_steps=self.num_spec_steps + s.num_spec_steps,
            spec_tokens=self.spec_tokens + (s.mean_acceptance_length or 0.0) * s.num_spec_steps,
            speedup_seconds=self.speedup_seconds + (s.speedup or 0.0) * timed,
            timed_seconds=self.timed_seconds + timed,
            errors=errors,
        )


def _added(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return dict(Counter(one) + Counter(other)) if other else one


@dataclass(frozen=True, slots=True)
class Reading:
    """What the board knows.

    Actors that reported, their sum, seconds since the first report, and how many of the actors
    have reported in the last `ALIVE_SECONDS`.
    """

    actors: int
    counters: Counters
    seconds: float
    alive: int = 0


class Board:
    """The latest counters of every actor, by name. Lives in a Ray actor.

    Args:
        actors: that decode, or are to.
    """

    def __init__(self, actors: int = 1) -> None:
        self._actors = actors
        self._lost: set[str] = set()
        self._counters: dict[str, Counters] = {}
        self._heard: dict[str, float] = {}
        self._explanations: dict[str, Explanation] = {}
        self._first = 0.0

    def report(self, name: str, counters: Counters) -> None:
        """Replace what this process said before; it is called actor/process."""
        now = time.monotonic()
        if not self._counters:
            self._first = now
        self._counters[name] = counters
        actor = name.split("/")[0]
        self._heard[actor] = now
        self._lost.discard(actor)

    def lose(self, actor: str) -> None:
        """Note that an actor finds no GPU where it was given one."""
        self._lost.add(actor)

    def others_left(self) -> bool:
        """Whether there are actors that have a GPU, or may still find theirs."""
        return len(self._lost) < self._actors

    def explain(self, name: str, explanation: Explanation) -> None:
        """Replace what this process said of its choices."""
        self._explanations[name] = explanation

    def explanations(self) -> dict[str, Explanation]:
        """The latest of each process that had a choice."""
        return self._explanations

    def read(self) -> Reading:
        """All counters at once."""
        now = time.monotonic()
        seconds = now - self._first if self._counters else 0.0
        total = sum(self._counters.values(), Counters())
        alive = sum(now - heard < ALIVE_SECONDS for heard in self._heard.values())
        return Reading(len(self._heard), total, seconds, alive)
