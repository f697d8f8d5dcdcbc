"""Ends an execution that stands still, or that waits for machines that will not come back.

Ray's own guard counts finished blocks only, and a block may take longer than its patience; here
tokens that actors make count too. An actor whose machine is gone keeps its blocks and waits for
another one for ever, so a cluster that stays too small is an end as well: what is left can then be
started again on what there is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray

from pipeline.counters import Reading

_KEY = "admg_batch.oversight"
_LOOK_SECONDS = 2.0


class Stalled(RuntimeError):
    """Nothing has moved for too long."""


class Shrunk(RuntimeError):
    """The cluster has lost what the actors need."""


class Oversight:
    """Watches one execution; Ray Data asks it at each step of its scheduling, on the driver.

    Args:
        stall_seconds: without any movement, the execution ends after this.
        grace_seconds: a cluster that is too small for `needs` may grow again in this time.
        needs: the least of each resource ("CPU", "GPU") that all actors together need.
    """

    def __init__(
        self,
        stall_seconds: float,
        grace_seconds: float,
        needs: dict[str, float],
        resources: Callable[[], dict[str, float]] = ray.cluster_resources,
    ) -> None:
        self._stall, self._grace = stall_seconds, grace_seconds
        self._needs, self._resources = needs, resources
        self._made: object = None
        self._seen: object = None
        now = time.monotonic()
        self._moved = self._fits = self._looked = now

    def tell(self, reading: Reading) -> None:
        """What the actors report (from any thread)."""
        self._made = (reading.actors, reading.counters)

    def step(self, outputs: int, now: float) -> None:
        """Look at everything; `outputs` counts the blocks that Ray's operators gave on.

        Raises:
            Stalled: nothing moves.
            Shrunk: the cluster is too small.
        """
        if now - self._looked < min(_LOOK_SECONDS, self._stall / 4, self._grace / 4):
            return
        self._looked = now
        seen = (self._made, outputs)
        if seen != self._seen:
            self._seen, self._moved = seen, now
        have = self._resources()
        if all(have.get(name, 0.0) >= needed for name, needed in self._needs.items()):
            self._fits = now
        if now - self._moved > self._stall:
            raise Stalled(f"no token was made and no block moved for {self._stall:.0f} seconds")
        if now - self._fits > self._grace:
            what = ", ".join(f"{have.get(k, 0.0):g} of {v:g} {k}s" for k, v in self._needs.items())
            raise Shrunk(f"the cluster has lost machines, and has {what} that the actors need")

    def attach(self, context: Any) -> None:
        """Let executions under this DataContext ask."""
        context.set_config(_KEY, self)
        context.custom_execution_callback_classes.append(_Callback)

    # Contexts are copied, and sent to workers, who have no use for this.
    def __deepcopy__(self, memo: object) -> Oversight:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (dict, ())


class _Callback:
    """What Ray Data makes one of for each execution (its ExecutionCallback)."""

    def before_execution_starts(self, executor: Any) -> None:
        """Nothing to do."""

    def on_execution_step(self, executor: Any) -> None:
        """Ask; what is raised ends the execution."""
        oversight = executor._data_context.get_config(_KEY)
        if isinstance(oversight, Oversight):
            outputs = sum(op.metrics.num_outputs_taken for op in executor._topology)
            oversight.step(outputs, time.monotonic())
        for op in executor._topology:
            # For `Dataset.stats()`, which nobody asks here: memory for every block that there was.
            getattr(op, "_output_blocks_stats", []).clear()

    def after_execution_succeeds(self, executor: Any) -> None:
        """Nothing to do."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Nothing to do."""
