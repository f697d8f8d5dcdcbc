"""Ray: connect or start, quietly; shut down only what was started here."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import ray
import ray.data

from pipeline.oversight import Oversight
from pipeline.priority import giving_way

_LOGGERS = ("ray", "ray.data")

# For a Ray of this process's own; what the environment says goes before.
_OWN = {
    # Its native code warns about every actor pool, and, told not to, says that it was told so.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # Ray's own choice, 15, would leave Decode what other programs of this machine leave over.
    "RAY_worker_niceness": "0",
    # One machine, and nobody who looks at it: nothing is counted for a dashboard, and memory, disk
    # and idle workers are looked after once a second instead of four or ten times. On CPUs all of
    # that is taken from the engine, on every core at once.
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_enable_timeline": "0",
    "RAY_event_stats": "0",
    "RAY_gcs_pull_resource_loads_period_milliseconds": "5000",
    "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_raylet_check_gc_period_milliseconds": "1000",
    "RAY_memory_monitor_refresh_ms": "1000",
    "RAY_local_fs_monitor_interval_ms": "1000",
    "RAY_kill_idle_workers_interval_ms": "1000",
    "RAY_object_manager_timer_freq_ms": "1000",
}


@dataclass(frozen=True, slots=True)
class Cluster:
    """What there is to run on. `local` where this process started Ray itself."""

    cpus: float
    gpus: float
    local: bool

    @classmethod
    def now(cls, local: bool) -> Cluster:
        """What there is at this moment."""
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        return cls(resources.get("CPU", 0.0), resources.get("GPU", 0.0), local)


def starts_ray() -> bool:
    """Whether a run would start a Ray of its own, for want of another in process or environment."""
    return not ray.is_initialized() and not os.environ.get("RAY_ADDRESS")


@contextmanager
def connected(actors: int) -> Iterator[Cluster]:
    """A Ray connection: the process's own, that of `RAY_ADDRESS` (as in a Ray job), or a new one.

    A local Ray gets more logical CPUs than there are, so that reading, tokenising and writing
    always have one beside the actors; the actors share the real ones through their thread counts.
    """
    local = starts_ray()
    with _quiet(), giving_way() if local else nullcontext():
        started = not ray.is_initialized()
        try:
            with _same_sigterm():
                if local:
                    _start(max(4, os.cpu_count() or 1, actors + 3))
                elif started:
                    ray.init(log_to_driver=False, logging_level=logging.ERROR)
            yield Cluster.now(local)
        finally:
            if started:
                ray.shutdown()


@contextmanager
def _same_sigterm() -> Iterator[None]:
    """Keep Ray from putting handlers of its own, which exit, in the place of this process's."""
    sets = ray._private.utils.set_sigterm_handler
    ray._private.utils.set_sigterm_handler = lambda _: None
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        ray._private.utils.set_sigterm_handler = sets
        if threading.current_thread() is threading.main_thread():
            # Its native code has one too, which aborts the process seconds later.
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _own_settings() -> Iterator[None]:
    """`_OWN` in the environment: what is started here inherits them, what comes later does not."""
    missing = [name for name in _OWN if name not in os.environ]
    os.environ.update({name: _OWN[name] for name in missing})
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]


def _start(cpus: int) -> None:
    # It says so while it starts: hence no standard error for that moment.
    with _own_settings(), open(os.devnull, "w") as nowhere:
        standard_error = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)


@contextmanager
def data_context(actors: int, oversight: Oversight) -> Iterator[None]:
    """Ray Data's settings for a run; the caller's are untouched."""
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Ray's guard takes a block that is at work for long for one that hangs; ours knows better.
    context.execution_no_progress_timeout_s = -1
    oversight.attach(context)
    # Actors in a row that may fail to load their model before the run does: all once, and one more.
    context.max_consecutive_actor_init_deaths = actors
    # The exception of a stage itself, and not one that says there was one.
    context.raise_original_map_exception = True
    with ray.data.DataContext.current(context):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray's words off the terminal; its own log files still get them."""
    consoles = [
        handler
        for name in _LOGGERS
        for handler in logging.getLogger(name).handlers
        if isinstance(handler, logging.StreamHandler)
    ]
    before = [handler.level for handler in consoles]
    for handler in consoles:
        handler.setLevel(logging.CRITICAL + 1)
    # Told of each task that it tries again, Ray prints it, whatever the level and the settings are.
    printed = ray._private.worker.print_to_stdstream
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        ray._private.worker.print_to_stdstream = printed
        for handler, level in zip(consoles, before, strict=True):
            handler.setLevel(level)
