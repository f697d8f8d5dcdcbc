"""Models and prompts for all tests.

The tiny checkpoints are made here with transformers, seeded, so nothing is downloaded for them.
transformers' own initialisation (std 0.02) would make useless models of this size: logits almost
equal, attention almost uniform, so that a wrong mask, a dropped layer or a swapped head would
change nothing that a test could see. `_randomise` therefore draws every matrix at 1/sqrt(fan-in)
times a gain: residual stream and sub-layer outputs of like size, attention scores with a standard
deviation of about 1.5, logits of about 3, and norm weights and biases that are not 1 and 0.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

# Files that take minutes: a few processes share the tests, a file at a time, and begin with these.
LONGEST = (
    "test_end_to_end.py",
    "test_engine_real.py",
    "test_fault_01_05_killed_drivers.py",
    "test_fault_24_25_same_texts.py",
    "test_fault_13_14_15_outputs.py",
)

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; then those of all folders side by side, so that tests that compute
    and tests that wait for Ray run together."""
    files = dict.fromkeys(item.path for item in items)
    longest = sorted((f for f in files if f.name in LONGEST), key=lambda f: LONGEST.index(f.name))
    place: dict[Path, float] = {file: i - len(longest) for i, file in enumerate(longest)}
    for folder in dict.fromkeys(file.parent for file in files):
        inside = [file for file in files if file.parent == folder and file not in place]
        place |= {file: i / len(inside) for i, file in enumerate(inside)}
    items.sort(key=lambda item: place[item.path])


@dataclass(frozen=True)
class TinyModel:
    """One tiny checkpoint: the transformers config class, what differs, and how it is saved."""

    config_class: str
    fields: dict[str, Any] = field(default_factory=dict)
    max_shard_size: str = "5GB"
    # Written into config.json as old versions of transformers did; `rope_parameters` then goes.
    old_rope: dict[str, Any] | None = None


BASE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 144,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}

TINY_MODELS: dict[str, TinyModel] = {
    "llama": TinyModel("LlamaConfig"),
    "llama-ungrouped-tied": TinyModel(
        "LlamaConfig", {"num_key_value_heads": 4, "tie_word_embeddings": True, "vocab_size": 128}
    ),
    "llama-biases": TinyModel(
        "LlamaConfig", {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}
    ),
    "llama3-rope-sharded": TinyModel(
        "LlamaConfig", {"rope_parameters": LLAMA3_ROPE, "num_hidden_layers": 6}, "100KB"
    ),
    "llama-linear-rope-old-spelling": TinyModel(
        "LlamaConfig",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 2500.0, "factor": 4.0}},
        old_rope={"rope_theta": 2500.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    ),
    "llama-yarn-rope": TinyModel("LlamaConfig", {"rope_parameters": YARN_ROPE}),
    "mistral": TinyModel(
        "MistralConfig",
        {"sliding_window": None, "head_dim": 24, "vocab_size": 512, "num_hidden_layers": 3},
    ),
    "qwen2": TinyModel("Qwen2Config", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "qwen2-ungrouped": TinyModel("Qwen2Config", {"num_key_value_heads": 4}, "100KB"),
    "qwen3": TinyModel("Qwen3Config", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-ungrouped-biases": TinyModel(
        "Qwen3Config", {"head_dim": 8, "num_key_value_heads": 4, "attention_bias": True}
    ),
}


def _randomise(model: torch.nn.Module, seed: int) -> None:
    """Draws all weights anew; see the top of this file for the scales."""
    gains = {"q_proj": 1.25, "k_proj": 1.25, "lm_head": 3.0, "embed_tokens": 3.0}
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            gain = next((gain for part, gain in gains.items() if part in name), 1.0)
            values = torch.randn(weight.shape, generator=generator)
            values *= gain / math.sqrt(weight.shape[1])
        elif name.endswith("bias"):
            values = 0.3 * torch.randn(weight.shape, generator=generator)
        else:  # norms; those of query and key heads have no matrix after them to set the scale
            low = 1.0 if "q_norm" in name or "k_norm" in name else 0.5
            values = low + torch.rand(weight.shape, generator=generator)
        with torch.no_grad():
            weight.copy_(values)


def _save(name: str, tiny: TinyModel, folder: Path) -> Path:
    config = getattr(transformers, tiny.config_class)(**(BASE | tiny.fields))
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _randomise(model, zlib.crc32(name.encode()))
    model.save_pretrained(folder, max_shard_size=tiny.max_shard_size)
    if tiny.old_rope is not None:
        file = folder / "config.json"
        content = json.loads(file.read_text())
        del content["rope_parameters"]
        file.write_text(json.dumps(content | tiny.old_rope))
    return folder


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint by its name in `TINY_MODELS`, made on first use."""
    root = tmp_path_factory.mktemp("checkpoints")

    def checkpoint(name: str) -> Path:
        folder = root / name
        return folder if folder.exists() else _save(name, TINY_MODELS[name], folder)

    return checkpoint


@pytest.fixture(params=TINY_MODELS)
def tiny_checkpoint(request: pytest.FixtureRequest, checkpoints: Callable[[str], Path]) -> Path:
    """Every tiny checkpoint in turn."""
    return checkpoints(request.param)


@pytest.fixture(scope="session")
def llama_checkpoint(checkpoints: Callable[[str], Path]) -> Path:
    """The plain tiny Llama with grouped heads, for tests that need just some model."""
    return checkpoints("llama")


@pytest.fixture(scope="session")
def demo_model_path() -> Path:
    """The folder of the demo model, fetched and converted on this machine's first use."""
    from jobs.demo_model import demo_model

    return demo_model()


@pytest.fixture(scope="session")
def spec_bench_prompts() -> list[str]:
    """The first turns of Spec-Bench's questions: real prompts of very different lengths."""
    file = SHARED_DATA / "spec_bench.jsonl"
    if not file.is_file():
        pytest.skip("needs the Spec-Bench questions at ../shared/data/spec_bench.jsonl")
    lines = file.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["turns"][0] for line in lines if line]
