"""The local Ray of the tests: the one place that says how it is started."""

from __future__ import annotations

import logging


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
