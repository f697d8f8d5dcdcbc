"""A checkpoint whose KV heads are repeated until every query head has its own.

It computes the same function and moves as many times the keys and values: a small model with
grouped heads then stands in the regime of large models without them, where the KV cache dominates
the bytes of a step. For measuring, not for use.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

_OF_KV_HEADS = re.compile(r"\.(k_proj|v_proj)\.(weight|bias)$")
_OTHERS = ("*.json", "*.model", "*.txt", "*.jinja")


def full_heads(source: Path, target: Path) -> int:
    """Write the checkpoint into a new folder; returns how often each KV head is there now.

    Raises:
        ValueError: no checkpoint there, one without grouped heads, or a folder that is not empty.
    """
    from safetensors.torch import load_file, save_file

    from admg.checkpoint import checkpoint_files
    from admg.families import read_model_config

    shape = read_model_config(source)
    times = shape.num_heads // shape.num_kv_heads
    if times == 1:
        raise ValueError(f"{source} has a KV head for every query head already")
    if target.exists() and any(target.iterdir()):
        raise ValueError(f"--output is {target}: it must be a new or an empty folder")
    target.mkdir(parents=True, exist_ok=True)
    for pattern in _OTHERS:
        for file in source.glob(pattern):
            shutil.copyfile(file, target / file.name)
    for file in checkpoint_files(source):
        tensors = load_file(file)
        for name, tensor in tensors.items():
            if _OF_KV_HEADS.search(name):
                heads = tensor.unflatten(0, (shape.num_kv_heads, -1))
                tensors[name] = heads.repeat_interleave(times, dim=0).flatten(0, 1).contiguous()
        save_file(tensors, target / file.name, metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["num_key_value_heads"] = shape.num_heads
    (target / "config.json").write_text(json.dumps(config, indent=2))
    return times
