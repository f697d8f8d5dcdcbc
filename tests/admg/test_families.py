"""What `read_model_config` takes from a folder, and what it refuses by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from admg.families import ModelConfig, parse_model_config, read_model_config
from admg.rope import apply_rope, rope_tables

# Facts about published models, as their config.json files state them.
LLAMA_2_13B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "pretraining_tp": 1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float16",
    "use_cache": True,
    "initializer_range": 0.02,
    "transformers_version": "4.32.0",
}
LLAMA = LLAMA_2_13B | {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MISTRAL = LLAMA | {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
QWEN2 = LLAMA | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
QWEN3 = LLAMA | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32}


def test_tiny_models_are_read_as_transformers_reads_them(tiny_checkpoint: Path) -> None:
    ours = read_model_config(tiny_checkpoint)
    oracle = transformers.AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    names = set(oracle.state_dict())
    layer = "model.layers.0."
    assert ours.num_parameters == oracle.num_parameters()
    assert ours.qkv_bias == (layer + "self_attn.q_proj.bias" in names)
    assert ours.o_bias == (layer + "self_attn.o_proj.bias" in names)
    assert ours.mlp_bias == (layer + "mlp.down_proj.bias" in names)
    assert ours.qk_norm == (layer + "self_attn.q_norm.weight" in names)
    assert ours.num_heads * ours.head_dim == oracle.model.layers[0].self_attn.q_proj.out_features
    assert ours.tied == (oracle.lm_head.weight is oracle.model.embed_tokens.weight)
    assert ours.eos_token_ids == (1,)
    assert ours.sliding_window is None
    assert ours.max_position_embeddings == 512


def test_rotation_is_transformers_own(tiny_checkpoint: Path) -> None:
    """Speeds to the last bit, and the same rotation at near and far positions."""
    rope = read_model_config(tiny_checkpoint).rope
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_checkpoint).model
    assert torch.tensor(rope.inv_freq).equal(model.rotary_emb.inv_freq)
    assert rope.attention_scaling == model.rotary_emb.attention_scaling
    positions = torch.tensor([0, 1, 77, 511])
    heads = torch.randn(4, 3, 2 * len(rope.inv_freq), generator=torch.Generator().manual_seed(0))
    cos, sin = model.rotary_emb(heads, positions[None])
    expected, _ = transformers.models.llama.modeling_llama.apply_rotary_pos_emb(
        heads.transpose(0, 1)[None], heads.transpose(0, 1)[None], cos, sin
    )
    our_cos, our_sin = rope_tables(rope, 512, "cpu")
    rotated = apply_rope(heads, our_cos[positions], our_sin[positions])
    torch.testing.assert_close(rotated, expected[0].transpose(0, 1), atol=1e-6, rtol=0)
    half = apply_rope(heads.bfloat16(), our_cos[positions], our_sin[positions])
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), rotated, atol=0.03, rtol=0.02)


def test_llama_2_13b_has_its_published_size() -> None:
    config = parse_model_config(LLAMA_2_13B)
    assert config.num_parameters == 13_015_864_320
    assert config.head_dim == 128
    assert config.eos_token_ids == (2,)
    assert config.rope.inv_freq[:2] == pytest.approx((1.0, 10000 ** (-2 / 128)))


def test_codellama_13b() -> None:
    raw = LLAMA_2_13B | {
        "vocab_size": 32016,
        "max_position_embeddings": 16384,
        "rope_theta": 1e6,
    }
    config = parse_model_config(raw)
    assert config.num_parameters == 13_015_864_320 + 2 * 16 * 5120
    assert config.max_position_embeddings == 16384
    assert config.rope.inv_freq[1] == pytest.approx(1e6 ** (-2 / 128))


def test_llama_1_without_key_value_heads_is_ungrouped() -> None:
    raw = {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"}
    assert parse_model_config(raw).num_kv_heads == 4


def test_old_and_new_spellings_of_rope_are_one() -> None:
    scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    }
    old = LLAMA | {"rope_theta": 5e5, "rope_scaling": scaling | {"rope_type": "llama3"}}
    new = LLAMA | {"rope_parameters": scaling | {"rope_type": "llama3", "rope_theta": 5e5}}
    assert parse_model_config(old) == parse_model_config(new)
    assert parse_model_config(old) != parse_model_config(LLAMA | {"rope_theta": 5e5})
    linear = LLAMA | {"rope_scaling": {"type": "linear", "factor": 4.0}}
    plain = parse_model_config(LLAMA).rope.inv_freq
    assert parse_model_config(linear).rope.inv_freq == tuple(speed / 4 for speed in plain)


@pytest.mark.parametrize(
    ("raw", "window"),
    [
        (MISTRAL | {"sliding_window": 1024}, 1024),
        (MISTRAL | {"sliding_window": None}, None),
        (MISTRAL, 4096),  # transformers' default for the family
        (QWEN2 | {"use_sliding_window": False, "sliding_window": 512}, None),
        (
            QWEN2 | {"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 1},
            512,
        ),
        (QWEN3 | {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}, None),
        (
            QWEN3
            | {
                "use_sliding_window": True,
                "sliding_window": 9,
                "layer_types": ["full_attention", "sliding_attention"],
            },
            9,
        ),
    ],
)
def test_sliding_window_is_reported(raw: dict[str, Any], window: int | None) -> None:
    assert parse_model_config(raw).sliding_window == window


@pytest.mark.parametrize(
    ("generation", "expected"),
    [({}, (2,)), ({"eos_token_id": [5, 7, 5]}, (5, 7)), ({"eos_token_id": 9}, (9,))],
)
def test_generation_config_decides_on_eos(
    generation: dict[str, Any], expected: tuple[int, ...]
) -> None:
    assert parse_model_config(LLAMA, generation).eos_token_ids == expected


def test_eos_is_read_from_the_folder(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    raw = (checkpoints("qwen2") / "config.json").read_text()
    (tmp_path / "config.json").write_text(raw)
    assert read_model_config(tmp_path).eos_token_ids == (1,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4]}))
    assert read_model_config(tmp_path).eos_token_ids == (3, 4)


# Fields that real checkpoints of these families carry and that change nothing here.
HARMLESS = {
    "_name_or_path": "somewhere",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "rope_interleaved": False,
    "is_llama_config": True,
    "transformers.js_config": {"dtype": "q4"},
    "pretraining_tp": 4,
    "use_mrope": False,
    "temperature": 0.6,
    "pad_token_id": 0,
    "quantization_config": None,
}


@pytest.mark.parametrize("raw", [LLAMA, MISTRAL, QWEN2, QWEN3], ids=lambda raw: raw["model_type"])
def test_harmless_fields_change_nothing(raw: dict[str, Any]) -> None:
    assert parse_model_config(raw | HARMLESS) == parse_model_config(raw)


def rope(**fields: Any) -> dict[str, Any]:
    return {"rope_scaling": fields}


REFUSALS: list[tuple[dict[str, Any], str]] = [
    (LLAMA | {"architectures": ["GPT2LMHeadModel"]}, "architectures .*GPT2LMHeadModel"),
    (LLAMA | {"architectures": ["LlamaModel"]}, "architectures .*LlamaModel"),
    (LLAMA | {"architectures": None}, "architectures .*None"),
    (LLAMA | {"architectures": []}, r"architectures .*\[\]"),
    (LLAMA | {"model_type": "mistral"}, "model_type .*mistral.*'llama'"),
    (LLAMA | {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping .*50.0.*llama"),
    (LLAMA | {"residual_multiplier": 0.22}, "residual_multiplier .*0.22"),
    (LLAMA | {"some_new_thing": None}, "some_new_thing .*None"),
    (LLAMA | {"hidden_act": "gelu"}, "hidden_act .*gelu.*silu"),
    (LLAMA | {"hidden_act": None}, "hidden_act .*None"),
    (LLAMA | {"sliding_window": 4096}, "sliding_window .*4096"),
    (LLAMA | {"layer_types": ["full_attention"] * 2}, "layer_types .*full_attention"),
    (LLAMA | {"quantization_config": {"quant_method": "gptq"}}, "quantization_config .*gptq"),
    (LLAMA | {"auto_map": {"AutoConfig": "x.Y"}}, "auto_map .*x.Y"),
    (LLAMA | {"trust_remote_code": True}, "trust_remote_code .*True"),
    (LLAMA | {"rope_interleaved": True}, "rope_interleaved .*True"),
    (LLAMA | {"partial_rotary_factor": 0.5}, "partial_rotary_factor .*0.5"),
    (LLAMA | {"hidden_size": "64"}, "hidden_size .*'64'.*whole number"),
    (LLAMA | {"vocab_size": None}, "vocab_size .*None"),
    (LLAMA | {"num_hidden_layers": 0}, "num_hidden_layers .*0.*at least 1"),
    (LLAMA | {"num_key_value_heads": 3}, "num_key_value_heads .*3.*divisor"),
    (LLAMA | {"head_dim": 15}, "head_dim"),
    (LLAMA | {"rms_norm_eps": 0.0}, "rms_norm_eps .*0.0"),
    (LLAMA | {"rms_norm_eps": "small"}, "rms_norm_eps"),
    (LLAMA | {"eos_token_id": "</s>"}, "eos_token_id"),
    (LLAMA | rope(type="dynamic", factor=2.0), "rope_scaling.rope_type .*dynamic"),
    (LLAMA | rope(rope_type="longrope"), "rope_scaling.rope_type .*longrope"),
    (LLAMA | rope(type="linear"), "factor"),
    (LLAMA | rope(type="linear", factor=2.0, mrope_section=[1]), "rope_scaling.mrope_section"),
    (LLAMA | rope(rope_type="llama3", factor=2.0), "factor"),
    (LLAMA | rope(type="linear", factor="2"), "rope_scaling.factor .*'2'.*number"),
    (LLAMA | rope(type="linear", factor=0), "factor"),
    (LLAMA | rope(rope_type="yarn", factor=2.0, beta_fast="x"), "beta_fast"),
    (LLAMA | rope(rope_type="linear", factor=2.0, partial_rotary_factor=0.5), "partial_rotary"),
    (LLAMA | {"rope_scaling": "linear"}, "rope_scaling .*'linear'.*object"),
    (LLAMA | {"rope_theta": 0}, "rope_theta .*0.*above 0"),
    (
        LLAMA | {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 5.0}},
        "rope_theta .*10000.0.*5.0",
    ),
    (
        LLAMA
        | rope(type="linear", factor=2.0)
        | {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
        "rope_scaling .*2.0.*rope_parameters",
    ),
    (MISTRAL | {"attention_bias": True}, "attention_bias .*True"),
    (MISTRAL | {"sliding_window": 0}, "sliding_window .*0"),
    (QWEN2 | {"mlp_bias": True}, "mlp_bias .*True"),
    (QWEN2 | {"layer_types": ["full_attention", "chunked_attention"]}, "layer_types"),
]


@pytest.mark.parametrize(("raw", "message"), REFUSALS, ids=lambda v: v if type(v) is str else "")
def test_refusals_are_one_sentence_with_the_name(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_model_config(raw)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_that_are_no_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json"):
        read_model_config(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"config\.json"):
        read_model_config(tmp_path)
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(ValueError, match=r"config\.json cannot be read as JSON"):
        read_model_config(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="list"):
        read_model_config(tmp_path)


def test_configs_are_values() -> None:
    """Equal files give equal, hashable configurations."""
    configs: set[ModelConfig] = {parse_model_config(LLAMA), parse_model_config(LLAMA)}
    assert len(configs) == 1
