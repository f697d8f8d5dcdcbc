"""The local Ray of the tests: the one place that says how it is started."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


def start_ray() -> None:
    """Start it in this process; `ray.shutdown()` ends it."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


@contextmanager
def ray_for_all() -> Iterator[None]:
    """One for all runs inside, unless there is one already."""
    import ray

    started = not ray.is_initialized()
    if started:
        start_ray()
    try:
        yield
    finally:
        if started:
            ray.shutdown()
