"""The GPU of an actor: whose it is, how torch is set up for it, and what is refused."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from admg.config import EngineConfig
from admg.llm import LLM
from pipeline.cluster import Cluster
from pipeline.config import RunConfig
from pipeline.device import ALLOCATOR, EXPANDABLE, LoadingShown, NoDeviceError, device_for
from pipeline.factory import ModelFactory
from pipeline.layout import layout_of

BASE = RunConfig(input=("in",), output="out", model="model")
OLD = "PYTORCH_CUDA_ALLOC_CONF"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing set, and what a test sets is undone."""
    for name in (ALLOCATOR, OLD, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_an_actor_without_a_gpu_leaves_those_of_others_alone() -> None:
    assert device_for(0.0) == "cpu"
    assert ALLOCATOR not in os.environ
    assert device_for(None) == "auto"


def test_the_allocator_is_set_before_torch_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    def available() -> bool:
        asked.append(os.environ.get(ALLOCATOR))
        return True

    monkeypatch.setattr(torch.cuda, "is_available", available)
    assert device_for(1.0) == "cuda"
    assert asked == [EXPANDABLE]


@pytest.mark.parametrize("name", [ALLOCATOR, OLD])
def test_what_the_user_has_set_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv(name, "max_split_size_mb:512")
    device_for(1.0)
    both = [os.environ[n] for n in (ALLOCATOR, OLD) if n in os.environ]
    assert both == ["max_split_size_mb:512"]


def test_a_lost_gpu_is_no_reason_to_decode_on_the_cpu(
    tiny_chat_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An actor that is started again where its GPU is lost must not go on at a 50th of its pace."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    factory = ModelFactory(str(tiny_chat_model), EngineConfig(), gpus=1.0)
    with pytest.raises(NoDeviceError, match=r"CUDA_VISIBLE_DEVICES is '3'.* the device is lost"):
        factory.build()


@pytest.mark.parametrize(("gpus", "expected"), [(0.0, "cpu"), (1.0, "cuda"), (None, "auto")])
def test_the_model_goes_to_the_actors_device(
    gpus: float | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str] = []

    class Loaded:
        engine = None

        @classmethod
        def load(cls, *_: Any, device: str, **__: Any) -> Loaded:
            devices.append(device)
            return cls()

    monkeypatch.setattr(LLM, "load", Loaded.load)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    ModelFactory("model", EngineConfig(), gpus=gpus).build()
    assert devices == [expected]


@pytest.mark.parametrize(
    ("gpus", "said"),
    [
        (2.0, "gpus_per_actor is 2.0: it must be 0 or 1: an actor's model is on one GPU"),
        (1.5, "gpus_per_actor is 1.5: it must be 0 or 1"),
        (0.5, "gpus_per_actor is 0.5: it must be 1: models that share a GPU share its bandwidth"),
    ],
)
def test_other_shares_of_a_gpu_are_refused_with_the_reason(gpus: float, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        replace(BASE, gpus_per_actor=gpus)


def test_a_share_is_taken_where_it_is_said_how_much_memory_each_may_take() -> None:
    # A utilization is of what all processes use together, so the second one would find it used up.
    with pytest.raises(ValueError, match="share its bandwidth"):
        replace(BASE, gpus_per_actor=0.5, engine=EngineConfig(gpu_memory_utilization=0.4))
    engine = EngineConfig(kv_budget_bytes=2**30)
    shared = replace(BASE, gpus_per_actor=0.5, actors=4, engine=engine)
    assert layout_of(shared, 1000, Cluster(16, 2, True), 4).gpus == 0.5
    with pytest.raises(ValueError, match=r"must fit the 1 GPUs"):
        layout_of(shared, 1000, Cluster(16, 1, True), 4)


def test_loading_is_told_by_tenths(capsys: pytest.CaptureFixture[str]) -> None:
    shown = LoadingShown()
    for done in range(0, 26_001, 13):
        shown(done * 10**6, 26_000 * 10**6)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10 and lines[-1] == "weights: 26.0 of 26.0 GB"
