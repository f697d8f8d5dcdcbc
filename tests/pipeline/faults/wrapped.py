"""The real engine inside one that does something else as well."""

from __future__ import annotations

from typing import Any


class Wrapped:
    """What every such engine answers as the real one does."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    @property
    def has_work(self) -> bool:
        return bool(self._engine.has_work)

    @property
    def counters(self) -> Any:
        return self._engine.counters

    def explain(self) -> Any:
        return self._engine.explain()
