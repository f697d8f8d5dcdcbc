"""What the supported model families differ in, and the reading of a checkpoint's `config.json`.

One forward serves all families, so a family is a row of `FAMILIES`: where its biases come from,
whether query and key heads are normalised, how it states a sliding window. transformers normalises
a configuration (old and new spellings of the rope fields, defaults); what may be accepted at all is
decided on the raw JSON, in `config_fields` and `rope`.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from admg.config_fields import refuse, select_fields
from admg.rope import RopeConfig as RopeConfig
from admg.rope import check_rope_fields, read_rope


@dataclass(frozen=True, slots=True)
class Family:
    """One row of the table.

    A bias is fixed by the family (`True`, `False`) or read from the config field named. `window`
    says which layers `sliding_window` limits: none of them, all of them, or those that
    `layer_types` lists.
    """

    name: str
    qkv_bias: bool | str = False
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    window: Literal["none", "all", "some"] = "none"

    @property
    def own_fields(self) -> frozenset[str]:
        """The config fields that this family reads and not every family does."""
        biases = {b for b in (self.qkv_bias, self.o_bias, self.mlp_bias) if isinstance(b, str)}
        return _WINDOW_FIELDS[self.window] | biases


_WINDOW_FIELDS: dict[str, frozenset[str]] = {
    "none": frozenset(),
    "all": frozenset({"sliding_window"}),
    "some": frozenset({"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"}),
}

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family(
        "llama", qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias"
    ),
    "MistralForCausalLM": Family("mistral", window="all"),
    "Qwen2ForCausalLM": Family("qwen2", qkv_bias=True, window="some"),
    "Qwen3ForCausalLM": Family(
        "qwen3",
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        qk_norm=True,
        window="some",
    ),
}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a model and the switches of the one forward.

    `sliding_window` is the shortest window of any layer (None: none has one): up to that many
    tokens of context the window changes nothing, and longer contexts are not implemented.
    """

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tied: bool
    max_position_embeddings: int
    sliding_window: int | None
    rope: RopeConfig
    eos_token_ids: tuple[int, ...]

    @property
    def num_parameters(self) -> int:
        """How many weights the model has; a tied head counts once."""
        hidden, wide = self.hidden_size, self.intermediate_size
        qkv = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        layer = hidden * (qkv + self.num_heads * self.head_dim + 3 * wide + 2)
        layer += self.qkv_bias * qkv + self.o_bias * hidden
        layer += self.mlp_bias * (2 * wide + hidden) + self.qk_norm * 2 * self.head_dim
        embeddings = (1 if self.tied else 2) * self.vocab_size * hidden
        return embeddings + self.num_layers * layer + hidden


def read_model_config(path: str | Path) -> ModelConfig:
    """Reads `config.json` and `generation_config.json` of a Hugging Face folder; no weights.

    Raises:
        ValueError: no such folder, an architecture or field that is not supported, by name.
    """
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise ValueError(f"model is {str(path)!r}: it must be a folder with a config.json")
    generation = folder / "generation_config.json"
    return parse_model_config(
        _read_json(folder / "config.json"), _read_json(generation) if generation.is_file() else {}
    )


def parse_model_config(
    raw: Mapping[str, Any], generation: Mapping[str, Any] | None = None
) -> ModelConfig:
    """The configuration from the parsed `config.json` and `generation_config.json`.

    Raises:
        ValueError: as `read_model_config`.
    """
    family = _family(raw)
    fields = select_fields(raw, family.name, family.own_fields)
    check_rope_fields(fields)
    config = _normalise(fields)
    head_dim = getattr(config, "head_dim", None)
    head_dim = head_dim or config.hidden_size // max(config.num_attention_heads, 1)
    config.head_dim = head_dim  # not all of transformers' rope functions take None
    model = ModelConfig(
        family=family.name,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        intermediate_size=config.intermediate_size,
        rms_norm_eps=float(config.rms_norm_eps),
        qkv_bias=_switch(config, family.qkv_bias),
        o_bias=_switch(config, family.o_bias),
        mlp_bias=_switch(config, family.mlp_bias),
        qk_norm=family.qk_norm,
        tied=bool(config.tie_word_embeddings),
        max_position_embeddings=config.max_position_embeddings,
        sliding_window=_window(config, family),
        rope=read_rope(config),
        eos_token_ids=_eos(config, generation or {}),
    )
    _check_shape(model)
    return model


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}: it must be a JSON object")
    return content


def _family(raw: Mapping[str, Any]) -> Family:
    architectures = raw.get("architectures")
    one = architectures[0] if isinstance(architectures, list) and len(architectures) == 1 else None
    known = isinstance(one, str) and one in FAMILIES
    refuse(not known, "architectures", architectures, f"one of {', '.join(FAMILIES)}")
    family = FAMILIES[str(one)]
    model_type = raw.get("model_type")
    refuse(model_type != family.name, "model_type", model_type, f"{family.name!r}")
    return family


def _normalise(fields: Mapping[str, Any]) -> Any:
    """transformers' own reading: defaults, and old spellings of the rope fields."""
    try:
        return AutoConfig.for_model(**copy.deepcopy(dict(fields)))  # it writes into the rope fields
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"config.json is refused by transformers: {reason}") from error


def _switch(config: Any, source: bool | str) -> bool:
    return bool(getattr(config, source)) if isinstance(source, str) else source


def _window(config: Any, family: Family) -> int | None:
    if family.window == "none":
        return None
    if family.window == "some":
        kinds = set(config.layer_types)
        extra = sorted(kinds - {"full_attention", "sliding_attention"})
        refuse(bool(extra), "layer_types", extra, "full_attention or sliding_attention")
        if "sliding_attention" not in kinds:
            return None
    window: int | None = config.sliding_window
    refuse(window is not None and window < 1, "sliding_window", window, "null or above 0")
    return window


def _eos(config: Any, generation: Mapping[str, Any]) -> tuple[int, ...]:
    """`generation_config.json` decides where it says something, as in transformers."""
    ids = generation.get("eos_token_id")
    ids = config.eos_token_id if ids is None else ids
    ids = [] if ids is None else ids if isinstance(ids, list) else [ids]
    wrong = [token for token in ids if type(token) is not int]
    refuse(bool(wrong), "eos_token_id", wrong, "token ids")
    return tuple(dict.fromkeys(ids))


def _check_shape(model: ModelConfig) -> None:
    sizes = {
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "max_position_embeddings": model.max_position_embeddings,
    }
    for name, value in sizes.items():
        refuse(value < 1, name, value, "at least 1")
    refuse(model.head_dim % 2 != 0, "head_dim", model.head_dim, "even")
    refuse(
        model.num_heads % model.num_kv_heads != 0,
        "num_key_value_heads",
        model.num_kv_heads,
        f"a divisor of num_attention_heads ({model.num_heads})",
    )
    eps = model.rms_norm_eps
    refuse(not (math.isfinite(eps) and eps > 0), "rms_norm_eps", eps, "above 0")
