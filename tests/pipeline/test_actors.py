"""How many actors a run has where it does not say."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from admg.config import EngineConfig
from pipeline.actors import actors_for
from pipeline.cluster import Cluster
from pipeline.config import RunConfig
from pipeline.factory import ModelFactory
from pipeline.machine import usable_cores, usable_memory
from pipeline.weights import RemoteCheckpoint
from tests.pipeline.standin import StandIn

BASE = RunConfig(input=("in",), output="out", model="model", engine=EngineConfig(max_num_seqs=16))
HERE = Cluster(4.0, 0.0, local=True)
GB = 10**9


class Factory(ModelFactory):
    """Of a model that needs five times its checkpoint's bytes."""

    def memory_bytes(self) -> int:
        return 5 * self.weights_bytes()


def factory(files: Mapping[str, int]) -> Factory:
    return Factory("", BASE.engine, remote=RemoteCheckpoint("s3://m", files, {}))


SMALL = factory({"a.safetensors": GB // 8, "b.safetensors": GB // 8, "tokenizer.json": 9 * GB})


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores and 16 GB, unless a test says otherwise."""
    on(monkeypatch, cores=2, memory=16 * GB)


def on(monkeypatch: pytest.MonkeyPatch, cores: int, memory: int) -> None:
    monkeypatch.setattr("pipeline.actors.usable_cores", lambda: cores)
    monkeypatch.setattr("pipeline.actors.usable_memory", lambda: memory)


def test_a_small_model_has_an_actor_for_each_core() -> None:
    assert actors_for(BASE, SMALL, 1000, HERE) == 2


@pytest.mark.parametrize(("rows", "expected"), [(1, 1), (31, 1), (32, 2), (10**6, 2)])
def test_each_actor_has_a_full_batch(rows: int, expected: int) -> None:
    assert actors_for(BASE, SMALL, rows, HERE) == expected


@pytest.mark.parametrize(
    ("cores", "expected"),
    [(1, 1), (2, 2), (3, 3), (4, 4), (5, 1), (6, 3), (7, 1), (8, 4), (10, 2), (16, 4)],
)
def test_no_core_is_left_idle(cores: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, cores=cores, memory=64 * GB)
    assert actors_for(BASE, SMALL, 10**6, HERE) == actors_for(BASE, SMALL, 10**6) == expected


def test_one_where_more_are_not_known_to_help() -> None:
    assert actors_for(BASE, factory({"a.safetensors": 2 * GB}), 1000, HERE) == 1
    assert actors_for(BASE, SMALL, 1000, replace(HERE, local=False)) == 1
    assert actors_for(BASE, SMALL, 1000, replace(HERE, gpus=1.0)) == 1
    assert actors_for(BASE, StandIn(), 1000, HERE) == 1
    assert actors_for(replace(BASE, threads=1), SMALL, 1000, HERE) == 1


@pytest.mark.parametrize(("memory", "expected"), [(8, 4), (4, 2), (3, 1), (1, 1)])
def test_memory_holds_what_all_of_them_need(
    memory: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, cores=4, memory=memory * GB)
    assert actors_for(BASE, SMALL, 1000, HERE) == expected


def test_what_is_asked_for_is_what_there_is() -> None:
    three = replace(BASE, actors=3)
    assert actors_for(three, SMALL, 1, replace(HERE, gpus=1.0)) == 3
    assert actors_for(three, StandIn(), 1) == 3


def test_an_engine_takes_its_weights_and_its_cache(llama_checkpoint: Path) -> None:
    budget = EngineConfig(kv_budget_bytes=2**20)
    factory = ModelFactory(str(llama_checkpoint), budget, "float32")
    stored = sum(file.stat().st_size for file in llama_checkpoint.glob("*.safetensors"))
    assert factory.weights_bytes() == stored > 1000
    cache = factory.memory_bytes() - 3 * stored
    assert 2**19 < cache <= 2**20
    half = replace(factory, engine=EngineConfig(kv_budget_bytes=2**19))
    assert half.memory_bytes() - 3 * stored <= 2**19


@pytest.mark.parametrize(
    ("files", "cores", "memory"),
    [
        ({}, 8, 2**34),
        ({"cpu.max": "max 100000", "memory.max": "max"}, 8, 2**34),
        ({"cpu.max": "250000 100000", "memory.max": str(2**30)}, 2, 2**30),
        ({"cpu.max": "50000 100000", "memory.max": str(2**40)}, 1, 2**34),
    ],
)
def test_a_container_may_leave_less_than_there_is(
    files: Mapping[str, str],
    cores: int,
    memory: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(f"{text}\n")
    monkeypatch.setattr("pipeline.machine._CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    pages = {"SC_PHYS_PAGES": 2**22, "SC_PAGE_SIZE": 2**12}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    assert (usable_cores(), usable_memory()) == (cores, memory)
