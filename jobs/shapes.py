"""Shapes of models by name: what a pass of them costs, without their weights.

As the checkpoints' config.json have them, but for the positions: there is room for a context of
4,096 tokens and what is decoded after it.
"""

from __future__ import annotations

from typing import Any

from jobs.sizing import MODELS

_ROOM = {"max_position_embeddings": 8192}
_LLAMA = MODELS["Llama-2-13b"]

SHAPES: dict[str, dict[str, Any]] = {
    "llama-2-13b": _LLAMA | _ROOM,
    "codellama-13b": _LLAMA | _ROOM | {"vocab_size": 32016, "rope_theta": 1e6},
    # Nothing like a real model: to see that all of a measurement works.
    "tiny": _LLAMA
    | {
        "num_hidden_layers": 6,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 512,
        "max_position_embeddings": 1024,
    },
}


def shape_named(name: str) -> dict[str, Any]:
    """The fields of a shape's config.json.

    Raises:
        ValueError: another name.
    """
    if name not in SHAPES:
        raise ValueError(f"--shape is {name!r}: it must be one of {', '.join(SHAPES)}")
    return SHAPES[name]
