"""Weights of a model, fused as the forward wants them, from safetensors files.

Shapes: V vocabulary, D hidden size, H query heads, K KV heads, d head size, F feed-forward size.

Loading copies tensor by tensor from the memory-mapped files into the fused buffers, so it needs no
second copy of the weights. The names in the files must be exactly the expected ones: a missing
tensor would leave noise in the buffer, and a tensor that we do not know is something that the
model does and our forward does not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from admg.families import ModelConfig

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_EMBED = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"

# Buffers that old versions of transformers saved and everybody computes anew.
_SKIPPED = re.compile(r"(^|\.)rotary_emb\.(inv_freq|cos_cached|sin_cached)$")

# Bytes of the files that are loaded, and of how many.
OnLoad = Callable[[int, int], object]

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(slots=True)
class LayerWeights:
    """One layer. Rows of `qkv`: all query heads, then KV heads' keys, then values."""

    input_norm: Tensor  # [D]
    qkv: Tensor  # [(H + 2K) d, D]
    qkv_bias: Tensor | None  # [(H + 2K) d]
    q_norm: Tensor | None  # [d]
    k_norm: Tensor | None  # [d]
    o: Tensor  # [D, H d]
    o_bias: Tensor | None  # [D]
    post_norm: Tensor  # [D]
    gate_up: Tensor  # [2F, D], gate rows first
    gate_up_bias: Tensor | None  # [2F]
    down: Tensor  # [D, F]
    down_bias: Tensor | None  # [D]


@dataclass(slots=True)
class Weights:
    """All weights. `head` is the very tensor of `embed` when the two are tied."""

    embed: Tensor  # [V, D]
    layers: list[LayerWeights]
    norm: Tensor  # [D]
    head: Tensor  # [V, D]

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor once."""
        yield self.embed
        for layer in self.layers:
            values = (getattr(layer, name) for name in LayerWeights.__slots__)
            yield from (value for value in values if value is not None)
        yield self.norm
        if self.head is not self.embed:
            yield self.head


def empty_weights(config: ModelConfig, dtype: torch.dtype, device: torch.device | str) -> Weights:
    """Uninitialised weights of the configuration's shapes; the device may be "meta"."""
    c = config
    qkv_rows = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    def layer() -> LayerWeights:
        return LayerWeights(
            input_norm=new(c.hidden_size),
            qkv=new(qkv_rows, c.hidden_size),
            qkv_bias=new(qkv_rows) if c.qkv_bias else None,
            q_norm=new(c.head_dim) if c.qk_norm else None,
            k_norm=new(c.head_dim) if c.qk_norm else None,
            o=new(c.hidden_size, c.num_heads * c.head_dim),
            o_bias=new(c.hidden_size) if c.o_bias else None,
            post_norm=new(c.hidden_size),
            gate_up=new(2 * c.intermediate_size, c.hidden_size),
            gate_up_bias=new(2 * c.intermediate_size) if c.mlp_bias else None,
            down=new(c.hidden_size, c.intermediate_size),
            down_bias=new(c.hidden_size) if c.mlp_bias else None,
        )

    embed = new(c.vocab_size, c.hidden_size)
    layers = [layer() for _ in range(c.num_layers)]
    head = embed if c.tied else new(c.vocab_size, c.hidden_size)
    return Weights(embed, layers, new(c.hidden_size), head)


def count_parameters(weights: Weights) -> int:
    """How many numbers the weights hold; a tied head counts once."""
    return sum(tensor.numel() for tensor in weights.tensors())


def load_dtype(name: str, device: torch.device | str) -> torch.dtype:
    """The dtype for "float32", "bfloat16", "float16", or "auto".

    "auto" is bfloat16 on CUDA and on CPUs that multiply it in hardware, else float32.

    Raises:
        ValueError: another name.
    """
    fixed = {t: getattr(torch, t) for t in ("float32", "bfloat16", "float16")}
    if name in fixed:
        dtype: torch.dtype = fixed[name]
        return dtype
    if name != "auto":
        raise ValueError(f"dtype is {name!r}: it must be auto, {', '.join(fixed)}")
    kind = torch.device(device).type
    if kind == "cpu":
        able = torch.cpu.get_capabilities()
        fast = able.get("avx512_bf16", False) or able.get("amx_bf16", False)
    else:
        fast = kind == "cuda"
    return torch.bfloat16 if fast else torch.float32


def checkpoint_files(path: str | Path) -> list[Path]:
    """The safetensors files of a checkpoint's folder.

    Raises:
        ValueError: none there, only pickled weights, or a shard of the index missing.
    """
    folder = Path(path)
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if (folder / _INDEX).is_file():
        try:
            index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
            names = sorted(set(index["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{folder / _INDEX} is not an index of safetensors files") from error
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ValueError(f"{folder} lacks {missing[0]}, which {_INDEX} names")
        return [folder / name for name in names]
    if pickled := sorted(folder.glob("*.bin")):
        raise ValueError(
            f"{folder} holds pickled weights ({pickled[0].name}): convert them to safetensors with "
            "transformers' save_pretrained"
        )
    raise ValueError(f"{folder} holds neither {_SINGLE} nor {_INDEX}")


def load_weights(
    path: str | Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device | str,
    on_load: OnLoad | None = None,
) -> Weights:
    """Loads a Hugging Face folder of safetensors files, straight to the device.

    Args:
        path: the folder.
        config: what it holds.
        dtype, device: of the weights.
        on_load: is told after each tensor, and that all is there when it is.

    Raises:
        ValueError: a tensor missing, unexpected, twice there or of a wrong shape or kind, by name.
    """
    files = checkpoint_files(path)
    weights = empty_weights(config, dtype, device)
    targets = _targets(weights, config)
    loaded: set[str] = set()
    second_head: Tensor | None = None
    bytes_done, bytes_all = 0, sum(file.stat().st_size for file in files)
    for name, source in _stored_tensors(files):
        if name in loaded:
            raise ValueError(f"tensor {name} stands twice in {path}")
        loaded.add(name)
        if config.tied and name == _HEAD:
            second_head = source
            continue
        if name not in targets:
            raise ValueError(f"tensor {name} in {path} is not one that a {config.family} model has")
        _copy(name, source, targets[name])
        bytes_done += source.nbytes
        if on_load is not None:
            on_load(bytes_done, bytes_all)
    if second_head is not None:
        loaded |= _resolve_tied_head(second_head, weights.embed, given=_EMBED in loaded)
    if missing := [name for name in targets if name not in loaded]:
        raise ValueError(f"tensor {missing[0]} is missing from {path} ({len(missing)} in all)")
    if on_load is not None:
        # Not all bytes are tensors that were copied: headers, a head that is the embedding.
        on_load(bytes_all, bytes_all)
    return weights


def _stored_tensors(files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    """Names and memory-mapped tensors of all files, without the buffers nobody needs."""
    for file in files:
        try:
            with safe_open(file, framework="pt", device="cpu") as shard:
                names = [name for name in shard.keys() if not _SKIPPED.search(name)]  # noqa: SIM118
                for name in names:
                    yield name, shard.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f"{file} cannot be read as safetensors: {error}") from error


def _copy(name: str, source: Tensor, target: Tensor) -> None:
    if source.shape != target.shape:
        raise ValueError(
            f"tensor {name} has the shape {list(source.shape)}: config.json makes it "
            f"{list(target.shape)}"
        )
    if source.dtype not in _FLOATS:
        raise ValueError(
            f"tensor {name} is {source.dtype}: it must be plain floating-point numbers"
        )
    target.copy_(source)


def _resolve_tied_head(head: Tensor, embed: Tensor, *, given: bool) -> set[str]:
    """A checkpoint that says tied may hold a head all the same: it stands in, or must agree."""
    if not given:
        _copy(_HEAD, head, embed)
    elif not torch.equal(head.to(embed.dtype), embed.cpu()):
        raise ValueError(
            f"tensor {_HEAD} differs from {_EMBED} although tie_word_embeddings in config.json is "
            "True: it must be False for these weights"
        )
    return {_EMBED}


def _targets(weights: Weights, config: ModelConfig) -> dict[str, Tensor]:
    """The buffer, or the rows of a fused buffer, of every tensor expected in the files."""
    targets = {_EMBED: weights.embed, "model.norm.weight": weights.norm}
    if not config.tied:
        targets[_HEAD] = weights.head
    d, wide = config.head_dim, config.intermediate_size
    heads = {"q": config.num_heads * d, "k": config.num_kv_heads * d, "v": config.num_kv_heads * d}
    halves = {"gate": wide, "up": wide}
    for i, layer in enumerate(weights.layers):
        expected: dict[str, Tensor | None] = {
            "input_layernorm.weight": layer.input_norm,
            "self_attn.q_norm.weight": layer.q_norm,
            "self_attn.k_norm.weight": layer.k_norm,
            "self_attn.o_proj.weight": layer.o,
            "self_attn.o_proj.bias": layer.o_bias,
            "post_attention_layernorm.weight": layer.post_norm,
            "mlp.down_proj.weight": layer.down,
            "mlp.down_proj.bias": layer.down_bias,
        }
        for fused, rows, suffix in (
            (layer.qkv, heads, "self_attn.{}_proj.weight"),
            (layer.qkv_bias, heads, "self_attn.{}_proj.bias"),
            (layer.gate_up, halves, "mlp.{}_proj.weight"),
            (layer.gate_up_bias, halves, "mlp.{}_proj.bias"),
        ):
            if fused is not None:
                parts = fused.split_with_sizes(list(rows.values()))
                expected |= {suffix.format(w): p for w, p in zip(rows, parts, strict=True)}
        targets |= {f"model.layers.{i}.{n}": t for n, t in expected.items() if t is not None}
    return targets
