"""Loading, widening, actors and `bench gpu` on a CUDA device: `make test-gpu`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from admg.checkpoint import _targets, empty_weights
from admg.config import EngineConfig, SamplingParams
from admg.families import parse_model_config
from admg.llm import LLM
from admg.request import Request
from jobs.bench.gpu.tiny_model import SHAPE, tiny_model
from jobs.shapes import shape_named
from jobs.widened import parse_shape, widen_checkpoint
from pipeline.factory import ModelFactory

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_weights_go_straight_to_the_device(tmp_path: Path) -> None:
    """2 GB of them, in a process whose own memory grows by a staging buffer at most."""
    sizes = {"num_hidden_layers": 3, "max_position_embeddings": 512}
    raw = shape_named("llama-2-13b") | sizes | {"vocab_size": 1024}
    config = parse_model_config(raw)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    targets = _targets(empty_weights(config, torch.bfloat16, "meta"), config)
    tensors = {n: torch.ones(t.shape, dtype=torch.bfloat16) for n, t in targets.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    code = f"""
import torch
from admg.checkpoint import load_weights
from admg.families import read_model_config

def own_memory():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

torch.zeros(1, device="cuda")
before, most = own_memory(), 0
def on_load(done, whole):
    global most
    most = max(most, own_memory())
weights = load_weights({str(tmp_path)!r}, read_model_config({str(tmp_path)!r}),
                       torch.bfloat16, "cuda", on_load)
assert all(bool((tensor == 1).all()) for tensor in weights.tensors())
print(most - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 300e6


def test_widening_on_the_device_computes_the_same(tmp_path: Path) -> None:
    source = tiny_model(tmp_path / "tiny")
    shape, found = parse_shape(SHAPE), []
    for device in ("cpu", "cuda"):
        target = tmp_path / device
        widen_checkpoint(source, target, shape, lambda *_: None, dtype=torch.float32, device=device)
        engine = EngineConfig(max_model_len=256, kv_budget_bytes=2**26)
        llm = LLM.load(target, engine=engine, dtype="float32", device="cuda")
        done = llm.generate(["The sea is wide, "], SamplingParams(max_tokens=16))
        found.append([c.token_ids for c in done])
    assert found[0] == found[1]


def test_an_actors_model_is_on_the_gpu_that_it_was_given(tmp_path: Path) -> None:
    source = tiny_model(tmp_path / "tiny")
    engine = EngineConfig(max_model_len=256, kv_budget_bytes=2**26)
    built = ModelFactory(str(source), engine, gpus=1.0).build()
    assert vars(built)["_arena"].keys.is_cuda
    built.submit(Request([1, 2, 3], SamplingParams(max_tokens=4), key="0"))
    done = []
    while built.has_work:
        done += built.step()
    assert [c.finish_reason for c in done] != ["error"]


@pytest.mark.timeout(240)
def test_a_tiny_bench_from_end_to_end(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs", "bench", "gpu", "--tiny", "--record", "r.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=_environment())
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["machine"]["driver"] and content["machine"]["device"] != "cpu"
    parts = {c["part"] for c in content["costs"]}
    assert parts == {"decode", "prefill", "draft", "verify", "eager"}
    assert {c["system"] for c in content["text"]["cells"]} >= {"plain", "auto"}


def _environment() -> dict[str, str]:
    """The checkout's code, installed or not."""
    root = str(Path(__file__).parents[2])
    return os.environ | {"PYTHONPATH": root}
