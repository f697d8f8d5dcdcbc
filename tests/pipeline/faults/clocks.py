"""A wall clock that is wrong and does not stand still, for the data plane of this process.

For Ray it stays right: what Ray's own timeouts do under a clock that is set is not the matter here.
"""

from __future__ import annotations

import datetime
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from unittest import mock

HOUR = 3600.0


@contextmanager
def wrong_clock(hours: float, jump: float = 0.0) -> Iterator[None]:
    """The clock is so many hours off, and jumps by `jump` more to and fro four times a second.

    One hour is what local time jumps by where summer time begins or ends.
    """
    import pipeline.run  # noqa: F401 (and with it every module that a run needs)

    def now() -> float:
        seconds = time.time()
        return seconds + HOUR * (hours + jump * (int(4 * seconds) % 2))

    class Wrong(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
            return datetime.datetime.fromtimestamp(now(), tz)

    wrong_time = ModuleType("time")
    wrong_time.__dict__.update(vars(time) | {"time": now, "time_ns": lambda: int(now() * 10**9)})
    patched = 0
    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if not name.startswith("pipeline."):
                continue
            if isinstance(vars(module).get("time"), ModuleType):
                stack.enter_context(mock.patch.object(module, "time", wrong_time))
                patched += 1
            if isinstance(vars(module).get("datetime"), type):
                stack.enter_context(mock.patch.object(module, "datetime", Wrong))
                patched += 1
        assert patched > 3
        yield
