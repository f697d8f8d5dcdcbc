"""Loading of weights: where every tensor lands, and which checkpoints are refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from admg.checkpoint import (
    _targets,
    checkpoint_files,
    count_parameters,
    empty_weights,
    load_dtype,
    load_weights,
)
from admg.families import ModelConfig, parse_model_config, read_model_config

Tensors = dict[str, torch.Tensor]

THIRTEEN_BILLION = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "rms_norm_eps": 1e-05,
}


def load(path: Path, dtype: torch.dtype = torch.float32) -> object:
    return load_weights(path, read_model_config(path), dtype, "cpu")


def test_every_tensor_lands_in_its_rows(tiny_checkpoint: Path) -> None:
    config = read_model_config(tiny_checkpoint)
    weights = load_weights(tiny_checkpoint, config, torch.float32, "cpu")
    stored = transformers.AutoModelForCausalLM.from_pretrained(tiny_checkpoint).state_dict()
    assert weights.embed.equal(stored["model.embed_tokens.weight"])
    assert weights.norm.equal(stored["model.norm.weight"])
    assert weights.head.equal(stored["lm_head.weight"])
    assert (weights.head is weights.embed) == config.tied
    used = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}

    def joined(layer: int, pattern: str, *parts: str) -> torch.Tensor | None:
        names = [f"model.layers.{layer}.{pattern.format(part)}" for part in parts]
        present = [name for name in names if name in stored]
        assert present in ([], names)
        used.update(present)
        return torch.cat([stored[name] for name in present]) if present else None

    for i, layer in enumerate(weights.layers):
        for name, expected in {
            "input_norm": joined(i, "{}.weight", "input_layernorm"),
            "qkv": joined(i, "self_attn.{}_proj.weight", "q", "k", "v"),
            "qkv_bias": joined(i, "self_attn.{}_proj.bias", "q", "k", "v"),
            "q_norm": joined(i, "self_attn.{}_norm.weight", "q"),
            "k_norm": joined(i, "self_attn.{}_norm.weight", "k"),
            "o": joined(i, "self_attn.{}_proj.weight", "o"),
            "o_bias": joined(i, "self_attn.{}_proj.bias", "o"),
            "post_norm": joined(i, "{}.weight", "post_attention_layernorm"),
            "gate_up": joined(i, "mlp.{}_proj.weight", "gate", "up"),
            "gate_up_bias": joined(i, "mlp.{}_proj.bias", "gate", "up"),
            "down": joined(i, "mlp.{}_proj.weight", "down"),
            "down_bias": joined(i, "mlp.{}_proj.bias", "down"),
        }.items():
            ours = getattr(layer, name)
            assert (ours is None) == (expected is None), name
            assert ours is None or ours.equal(expected), name
    assert used == set(stored)
    assert count_parameters(weights) == config.num_parameters


def test_sharded_checkpoints_really_are_sharded(checkpoints: Callable[[str], Path]) -> None:
    """The parity tests cover sharded loading only while this holds."""
    assert len(checkpoint_files(checkpoints("llama3-rope-sharded"))) > 3
    assert len(checkpoint_files(checkpoints("llama"))) == 1


@pytest.mark.parametrize(
    ("vocab_size", "fields", "parameters"),
    [
        (32000, {"max_position_embeddings": 4096}, 13_015_864_320),
        (32016, {"max_position_embeddings": 16384, "rope_theta": 1e6}, 13_016_028_160),
    ],
    ids=["Llama-2-13B", "CodeLlama-13B"],
)
def test_exact_shapes_of_13b_models(
    vocab_size: int, fields: dict[str, object], parameters: int
) -> None:
    config = parse_model_config(THIRTEEN_BILLION | {"vocab_size": vocab_size} | fields)
    weights = empty_weights(config, torch.bfloat16, "meta")
    assert count_parameters(weights) == config.num_parameters == parameters
    assert weights.embed.shape == weights.head.shape == (vocab_size, 5120)
    assert weights.head is not weights.embed
    assert len(weights.layers) == 40
    for layer in weights.layers:
        assert layer.qkv.shape == (15360, 5120)
        assert layer.o.shape == (5120, 5120)
        assert layer.gate_up.shape == (27648, 5120)
        assert layer.down.shape == (5120, 13824)
        assert layer.input_norm.shape == layer.post_norm.shape == (5120,)
        assert layer.qkv_bias is layer.o_bias is layer.gate_up_bias is layer.q_norm is None


def test_dtype_is_converted_while_loading(llama_checkpoint: Path) -> None:
    config = read_model_config(llama_checkpoint)
    exact = load_weights(llama_checkpoint, config, torch.float32, "cpu")
    half = load_weights(llama_checkpoint, config, torch.bfloat16, "cpu")
    for ours, stored in zip(half.tensors(), exact.tensors(), strict=True):
        assert ours.dtype == torch.bfloat16
        assert ours.equal(stored.bfloat16())


@pytest.fixture
def edited(llama_checkpoint: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the tiny Llama: tensors replaced, added or (None) removed, and config fields."""

    def edit(tensors: dict[str, torch.Tensor | None] | None = None, **fields: object) -> Path:
        stored: dict[str, torch.Tensor | None] = dict(
            load_file(llama_checkpoint / "model.safetensors")
        )
        stored |= tensors or {}
        kept = {name: tensor for name, tensor in stored.items() if tensor is not None}
        save_file(kept, tmp_path / "model.safetensors")
        raw = json.loads((llama_checkpoint / "config.json").read_text()) | fields
        (tmp_path / "config.json").write_text(json.dumps(raw))
        return tmp_path

    return edit


Q_PROJ = "model.layers.2.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({Q_PROJ: None}, f"{Q_PROJ} is missing"),
        ({"lm_head.weight": None}, "lm_head.weight is missing"),
        ({Q_PROJ: torch.zeros(64, 63)}, rf"{Q_PROJ} has the shape \[64, 63\].*\[64, 64\]"),
        ({Q_PROJ: torch.zeros(64, 64, dtype=torch.int8)}, f"{Q_PROJ} is torch.int8"),
        (
            {Q_PROJ: torch.zeros(64, 64).to(torch.float8_e4m3fn)},
            f"{Q_PROJ} is torch.float8_e4m3fn",
        ),
        ({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}, "q_proj.bias in .*llama"),
        ({"model.layers.0.self_attn.q_norm.weight": torch.ones(16)}, "q_norm.weight in .*llama"),
        ({"model.layers.9.input_layernorm.weight": torch.ones(64)}, r"layers\.9\..* in .*llama"),
        ({"base_model.lora_A": torch.zeros(2, 2)}, "base_model.lora_A in .*llama"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_tensors_are_refused_by_name(
    edited: Callable[..., Path], tensors: dict[str, torch.Tensor | None], message: str
) -> None:
    path = edited(tensors)
    with pytest.raises(ValueError) as caught:
        load(path)
    assert re.search(message, str(caught.value)), str(caught.value)


def test_saved_rotary_buffers_are_skipped(edited: Callable[..., Path]) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    assert load(edited({name: torch.ones(8)})) is not None


def test_a_tied_checkpoint_with_a_head_of_its_own(edited: Callable[..., Path]) -> None:
    """transformers unties such a model silently; here it must agree, or stand in, or be refused."""
    with pytest.raises(ValueError, match=r"lm_head\.weight differs .*tie_word_embeddings"):
        load(edited(tie_word_embeddings=True))
    path = edited()
    embed = load_file(path / "model.safetensors")["model.embed_tokens.weight"].clone()
    config = read_model_config(edited({"lm_head.weight": embed}, tie_word_embeddings=True))
    weights = load_weights(path, config, torch.bfloat16, "cpu")
    assert weights.head is weights.embed
    path = edited(
        {"lm_head.weight": embed, "model.embed_tokens.weight": None}, tie_word_embeddings=True
    )
    assert load_weights(path, config, torch.float32, "cpu").embed.equal(embed)


def test_folders_without_readable_weights(
    edited: Callable[..., Path], llama_checkpoint: Path
) -> None:
    path = edited()
    config: ModelConfig = read_model_config(path)
    stored = (path / "model.safetensors").read_bytes()

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            load_weights(path, config, torch.float32, "cpu")

    (path / "model.safetensors").write_bytes(stored[: len(stored) // 2])
    refused("cannot be read as safetensors")
    (path / "model.safetensors").unlink()
    refused("holds neither")
    (path / "pytorch_model.bin").write_bytes(b"")
    refused(r"pytorch_model\.bin.*convert them to safetensors")
    index = path / "model.safetensors.index.json"
    index.write_text("{}")
    refused("is not an index")
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    refused(r"lacks one\.safetensors")
    (path / "one.safetensors").write_bytes(stored)
    assert load_weights(path, config, torch.float32, "cpu").layers
    (path / "two.safetensors").write_bytes(stored)
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    refused("stands twice")


def test_load_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_dtype("float16", "cpu") == torch.float16
    assert load_dtype("bfloat16", "cpu") == torch.bfloat16
    assert load_dtype("float32", "cuda") == torch.float32
    assert load_dtype("auto", "cuda:0") == torch.bfloat16
    for able, expected in (
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx2": True}, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert load_dtype("auto", "cpu") == expected
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        load_dtype("int8", "cpu")


def test_loading_says_when_all_is_there(tiny_checkpoint: Path) -> None:
    """A head that is the embedding, or a file's header, is nothing that is copied."""
    told: list[tuple[int, int]] = []
    config = read_model_config(tiny_checkpoint)
    load_weights(tiny_checkpoint, config, torch.float32, "cpu", lambda *bytes_: told.append(bytes_))
    done = [d for d, _ in told]
    assert done == sorted(done) and 0 < done[0] < done[-1]
    assert told[-1] == (sum(f.stat().st_size for f in checkpoint_files(tiny_checkpoint)),) * 2


@pytest.mark.slow
def test_loading_makes_no_second_copy_in_memory(tmp_path: Path) -> None:
    """A checkpoint of 160 MB in two shards, loaded to a device without memory of its own.

    pytest -m slow tests/admg/test_checkpoint.py

    What it takes of the host's then is a copy if there is one: of one tensor, 8 MB, at most. Pages
    of the files are the system's, and the same for all processes.
    """
    fields = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4}
    raw = THIRTEEN_BILLION | fields | {"vocab_size": 4096, "num_attention_heads": 8}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    shapes = {
        name: list(target.shape)
        for name, target in _targets(
            empty_weights(parse_model_config(raw), torch.bfloat16, "meta"), parse_model_config(raw)
        ).items()
    }
    names = list(shapes)
    for part, own in enumerate((names[::2], names[1::2])):
        tensors = {n: torch.ones(shapes[n], dtype=torch.bfloat16) for n in own}
        save_file(tensors, tmp_path / f"model-{part}.safetensors")
    index = {n: f"model-{i % 2}.safetensors" for i, n in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    code = f"""
import json, torch
from admg.checkpoint import load_weights
from admg.families import read_model_config

def own_memory():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

config = read_model_config({str(tmp_path)!r})
before, most, told = own_memory(), 0, []
def on_load(done, whole):
    global most
    most = max(most, own_memory())
    told.append((done, whole))
load_weights({str(tmp_path)!r}, config, torch.bfloat16, "meta", on_load)
print(json.dumps([most - before, told[0][0], *told[-1]]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown, first, last, whole = json.loads(done.stdout)
    assert whole > 140e6 and 0 < first < last == whole
    assert grown < 24e6
