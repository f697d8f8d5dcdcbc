"""What actors share with the driver: values in Ray's object store, and the board."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import ray

from admg.explanation import Explanation
from pipeline.counters import Counters

T = TypeVar("T")

_ANSWER_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Shared(Generic[T]):
    """A value in the object store: one copy a machine, arrays in it without pickling."""

    ref: Any

    @classmethod
    def of(cls, value: T) -> Shared[T]:
        """Put it there."""
        return cls(ray.put(value))

    def __call__(self) -> T:
        """The value, mapped and not copied."""
        return cast(T, ray.get(self.ref))


@dataclass(frozen=True, slots=True)
class ToBoard:
    """An actor's way to the board."""

    board: Any

    def __call__(self, name: str, counters: Counters) -> None:
        """Fire and forget: a report that is lost is followed by another."""
        with suppress(ray.exceptions.RayError):
            self.board.report.remote(name, counters)

    def explain(self, name: str, explanation: Explanation) -> None:
        """Fire and forget, likewise."""
        with suppress(ray.exceptions.RayError):
            self.board.explain.remote(name, explanation)

    def explanations(self) -> dict[str, Explanation]:
        """What actors have said of their choices; {} where nobody answers any more."""
        with suppress(ray.exceptions.RayError):
            return cast(
                dict[str, Explanation], ray.get(self.board.explanations.remote(), timeout=5)
            )
        return {}

    def others_work(self) -> bool:
        """Whether any actor has reported, which it does when its model is loaded.

        False too where the board does not answer: then there is nobody to go on with.
        """
        with suppress(ray.exceptions.RayError):
            return bool(ray.get(self.board.read.remote(), timeout=_ANSWER_SECONDS).actors)
        return False

    def others_left(self, without: str | None = None) -> bool:
        """Whether actors have a GPU, or may still find theirs; `without` has none.

        False too where the board does not answer.
        """
        with suppress(ray.exceptions.RayError):
            if without is not None:
                ray.get(self.board.lose.remote(without), timeout=_ANSWER_SECONDS)
            return bool(ray.get(self.board.others_left.remote(), timeout=_ANSWER_SECONDS))
        return False
