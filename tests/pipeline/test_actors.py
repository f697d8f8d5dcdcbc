"""How many actors a run has where it does not say."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

import pipeline.actors
from admg.config import EngineConfig
from pipeline.actors import actors_for, most_actors
from pipeline.cluster import Cluster
from pipeline.config import RunConfig
from pipeline.factory import ModelFactory
from pipeline.weights import RemoteCheckpoint
from tests.pipeline.standin import StandIn

BASE = RunConfig(input=("in",), output="out", model="model", engine=EngineConfig(max_num_seqs=16))
HERE = Cluster(4.0, 0.0, local=True)
GB = 10**9


def factory(files: Mapping[str, int]) -> ModelFactory:
    return ModelFactory("", BASE.engine, remote=RemoteCheckpoint("s3://m", files, {}))


SMALL = factory({"a.safetensors": GB // 8, "b.safetensors": GB // 8, "tokenizer.json": 9 * GB})


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores and 16 GB free, unless a test says otherwise."""
    on(monkeypatch, cores=2, free=16 * GB)


def on(monkeypatch: pytest.MonkeyPatch, cores: int, free: int) -> None:
    monkeypatch.setattr(pipeline.actors, "usable_cores", lambda: cores)
    pages = {"SC_AVPHYS_PAGES": free // 4096, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)


def test_a_small_model_has_an_actor_for_each_core() -> None:
    assert actors_for(BASE, SMALL, 1000, HERE) == 2


@pytest.mark.parametrize(("rows", "expected"), [(1, 1), (31, 1), (32, 2), (10**6, 2)])
def test_each_actor_has_a_full_batch(rows: int, expected: int) -> None:
    assert actors_for(BASE, SMALL, rows, HERE) == expected


@pytest.mark.parametrize(
    ("cores", "threads", "expected"),
    [
        (1, None, 1),
        (3, None, 3),
        (4, None, 4),
        (5, None, 1),  # any other number would leave one idle
        (6, None, 3),
        (16, None, 4),
        (8, 4, 2),
        (8, 1, 4),
        (8, 8, 1),
        (2, 3, 1),
    ],
)
def test_cores_are_shared_without_a_rest(
    cores: int, threads: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, cores=cores, free=64 * GB)
    assert actors_for(replace(BASE, threads=threads), SMALL, 10**6, HERE) == expected


def test_one_where_more_are_not_known_to_help() -> None:
    assert actors_for(BASE, factory({"a.safetensors": 2 * GB}), 1000, HERE) == 1
    assert actors_for(BASE, SMALL, 1000, replace(HERE, local=False)) == 1
    assert actors_for(BASE, SMALL, 1000, replace(HERE, gpus=1.0)) == 1
    assert actors_for(BASE, StandIn(), 1000, HERE) == 1


def test_one_where_memory_holds_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, cores=4, free=4 * GB)
    assert actors_for(BASE, SMALL, 1000, HERE) == 2
    on(monkeypatch, cores=4, free=GB)
    assert actors_for(BASE, SMALL, 1000, HERE) == 1


def test_what_is_asked_for_is_what_there_is() -> None:
    three = replace(BASE, actors=3)
    assert actors_for(three, SMALL, 1, replace(HERE, gpus=1.0)) == 3
    assert (most_actors(three), most_actors(BASE)) == (3, 2)


def test_a_local_model_is_as_large_as_its_weights(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    (tmp_path / "config.json").write_text(json.dumps({}))
    assert ModelFactory(str(tmp_path), BASE.engine).weights_bytes() == 5
