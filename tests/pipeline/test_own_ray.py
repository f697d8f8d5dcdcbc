"""The settings of a Ray that a run starts for itself."""

from __future__ import annotations

import os
import signal
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from pipeline.cluster import Cluster, connected
from pipeline.signals import Terminated, sigterm_interrupts

METRICS, MEMORY = "RAY_enable_metrics_collection", "RAY_memory_monitor_refresh_ms"


@pytest.mark.parametrize("given", [None, "1"])
def test_it_is_a_quiet_one_unless_the_environment_says_otherwise(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What follows in this process, another Ray perhaps, has none of them."""
    for name in (METRICS, MEMORY, "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    if given is not None:
        monkeypatch.setenv(METRICS, given)
    before, seen = dict(os.environ), []

    def init(**options: Any) -> SimpleNamespace:
        assert options["address"] == "local" and not options["include_dashboard"]
        seen.append((os.environ[METRICS], os.environ[MEMORY]))
        return SimpleNamespace()

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(Cluster, "now", lambda local: Cluster(4.0, 0.0, local))
    with connected(1) as cluster:
        assert cluster.local
    assert seen == [(given or "0", "1000")]
    assert dict(os.environ) == before


@pytest.mark.parametrize("address", [None, "127.0.0.1:1"])
def test_sigterm_while_ray_starts_is_the_run_s_as_always(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own handler would exit with the signal's number, and clean nothing up."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    ended = []

    def init(**_: Any) -> None:
        ray._private.utils.set_sigterm_handler(lambda number, _: sys.exit(number))
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))
    with pytest.raises(Terminated), sigterm_interrupts(), connected(1):
        pass
    assert ended
