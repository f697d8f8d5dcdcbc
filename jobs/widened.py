"""A widened checkpoint on disk: written layer by layer, and gone on with after an interruption."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from admg.checkpoint import checkpoint_files
from admg.families import ModelConfig, parse_model_config, read_model_config
from jobs.shapes import shape_named
from jobs.widening import Widening, WideShape

_OTHERS = ("*.json", "*.model", "*.txt", "*.jinja")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_EMBED, _NORM, _HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
# What is being made, so that only the same is gone on with.
_PLAN = "widening.json"
# Rows of an embedding that are widened at once.
_ROWS = 8192
# Speeds of the rotary embedding that differ by less are the same.
_SAME_SPEED = 1e-6


@dataclass(frozen=True, slots=True)
class Widened:
    """What was made."""

    path: Path
    parameters: int
    layers: int
    files_kept: int


def parse_shape(text: str) -> WideShape:
    """The sizes of a known shape, or "HIDDENxHEADSxKVHEADSxHEADSIZExMLP".

    Raises:
        ValueError: neither.
    """
    parts = text.split("x")
    if len(parts) == 5 and all(p.isdigit() and int(p) > 0 for p in parts):
        return WideShape(*map(int, parts))
    try:
        shape = parse_model_config(shape_named(text))
    except ValueError as error:
        raise ValueError(
            f"{error}, or HIDDENxHEADSxKVHEADSxHEADSIZExMLP as 5120x40x40x128x13824"
        ) from error
    return WideShape(
        shape.hidden_size,
        shape.num_heads,
        shape.num_kv_heads,
        shape.head_dim,
        shape.intermediate_size,
    )


def widen_checkpoint(
    source: Path,
    target: Path,
    shape: WideShape,
    say: Callable[[int, int], None],
    *,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Widened:
    """Write the widened checkpoint into a folder; one that was interrupted is gone on with.

    At most one layer's tensors are in memory. `say` is told of files done, of how many.

    Raises:
        ValueError: no checkpoint there, a shape that it cannot be widened to, a folder that holds
            something else, or too small a disk.
    """
    narrow, raw = read_model_config(source), json.loads((source / "config.json").read_text())
    widening = Widening(narrow, shape, seed=seed, device=device)
    config = _config(raw, narrow, widening.wide, dtype)
    plan = {"source": _identity(source), "shape": asdict(shape), "seed": seed, "dtype": str(dtype)}
    _open_folder(target, plan)
    _check_room(target, widening.wide.num_parameters * dtype.itemsize)
    names = [f"model-{i:05d}-of-{narrow.num_layers + 2:05d}.safetensors"
             for i in range(1, narrow.num_layers + 3)]  # fmt: skip
    kept = 0
    with ExitStack() as stack:
        stored = _Stored(source, stack)
        for done, name in enumerate(names):
            if (target / name).is_file():
                kept += 1
            else:
                tensors = dict(_tensors(widening, stored, done))
                _save(target / name, {n: t.to("cpu", dtype) for n, t in tensors.items()})
            say(done + 1, len(names))
    _finish(source, target, config, names)
    return Widened(target, widening.wide.num_parameters, narrow.num_layers, kept)


class _Stored:
    """The tensors of a checkpoint by name, read when they are asked for."""

    def __init__(self, source: Path, stack: ExitStack) -> None:
        self._where: dict[str, Any] = {}
        for file in checkpoint_files(source):
            shard = stack.enter_context(safe_open(file, framework="pt", device="cpu"))
            self._where |= dict.fromkeys(shard.keys(), shard)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._where:
            raise ValueError(f"tensor {name} is missing from the model")
        tensor: Tensor = self._where[name].get_tensor(name)
        return tensor

    def head(self) -> Tensor:
        """The head, which is the embedding where it has none of its own."""
        return self[_HEAD if _HEAD in self._where else _EMBED]

    def layer(self, number: int) -> dict[str, Tensor]:
        """A layer's tensors by their names inside it."""
        prefix = f"model.layers.{number}."
        found = (n.removeprefix(prefix) for n in self._where if n.startswith(prefix))
        return {n: self[prefix + n] for n in found if "rotary_emb" not in n}


def _tensors(widening: Widening, stored: _Stored, file: int) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one file: the embedding, a layer, or the head with its norm."""
    if file == 0:
        parts = stored[_EMBED].split(_ROWS)
        yield _EMBED, torch.cat([widening.embedding(p).cpu() for p in parts])
    elif file <= widening.narrow.num_layers:
        for name, tensor in widening.layer(file - 1, stored.layer(file - 1)).items():
            yield f"model.layers.{file - 1}.{name}", tensor
    else:
        norm = stored[_NORM]
        yield _NORM, torch.ones(widening.wide.hidden_size)
        yield _HEAD, torch.cat([widening.head(p, norm).cpu() for p in stored.head().split(_ROWS)])


def _config(
    raw: dict[str, Any], narrow: ModelConfig, wide: ModelConfig, dtype: torch.dtype
) -> dict[str, Any]:
    """The wide model's config.json.

    Raises:
        ValueError: a rotary embedding whose speeds no wider head has.
    """
    config = raw | {
        "hidden_size": wide.hidden_size,
        "num_attention_heads": wide.num_heads,
        "num_key_value_heads": wide.num_kv_heads,
        "head_dim": wide.head_dim,
        "intermediate_size": wide.intermediate_size,
        "rms_norm_eps": wide.rms_norm_eps,
        "tie_word_embeddings": False,
    }
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    found, times = parse_model_config(config).rope, wide.head_dim // narrow.head_dim
    speeds = zip(narrow.rope.inv_freq, found.inv_freq[::times], strict=True)
    same = all(abs(own - new) <= _SAME_SPEED * own for own, new in speeds)
    if not same or found.attention_scaling != narrow.rope.attention_scaling:
        raise ValueError(
            f"head_dim of the wide shape is {wide.head_dim}: it must be {narrow.head_dim}, for "
            "this model's rotary embedding has other speeds in wider heads"
        )
    return config


def _identity(source: Path) -> dict[str, Any]:
    """What the source is: its configuration, and its weights' names and sizes."""
    digest = hashlib.blake2b((source / "config.json").read_bytes(), digest_size=16).hexdigest()
    return {"config": digest} | {f.name: f.stat().st_size for f in checkpoint_files(source)}


def _open_folder(target: Path, plan: dict[str, Any]) -> None:
    file = target / _PLAN
    if file.is_file() and json.loads(file.read_text()) == plan:
        return
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"--output is {target}: it must be a new or an empty folder")
    target.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(plan, indent=1))


def _check_room(target: Path, needed: int) -> None:
    there = sum(f.stat().st_size for f in target.glob("*.safetensors"))
    free = shutil.disk_usage(target).free + there
    if needed > free:
        raise ValueError(
            f"--output is {target}: it must be on a disk with {needed / 1e9:.1f} GB to spare, and "
            f"{free / 1e9:.1f} GB are free"
        )


def _save(file: Path, tensors: dict[str, Tensor]) -> None:
    """Whole or not at all."""
    aside = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        save_file({n: t.contiguous() for n, t in tensors.items()}, aside, {"format": "pt"})
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)


def _finish(source: Path, target: Path, config: dict[str, Any], names: list[str]) -> None:
    """The small files, and last the index that makes it a checkpoint."""
    for pattern in _OTHERS:
        for file in source.glob(pattern):
            if file.name not in _WEIGHTS:
                shutil.copyfile(file, target / file.name)
    (target / "config.json").write_text(json.dumps(config, indent=2))
    where: dict[str, str] = {}
    for name in names:
        with safe_open(target / name, framework="pt") as shard:
            where |= dict.fromkeys(shard.keys(), name)
    size = sum((target / name).stat().st_size for name in names)
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
