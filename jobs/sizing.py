"""What fits on a GPU and how fast it can be at best: computed from the roofline, not measured.

A decode step reads the weights once and the KV cache of every sequence, or it computes; the slower
of the two is the time of the step. Real engines reach a part of that, and prefill comes on top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from admg.families import ModelConfig, parse_model_config
from admg.kv_arena import SLOT_GRAIN, bytes_per_slot
from admg.memory import CUDA_SHARE
from jobs.devices import Gpu

# What a process on a GPU takes beside weights and cache: the CUDA context and activations.
OVERHEAD_BYTES = 2e9


_LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5}
_QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rms_norm_eps": 1e-6}


def _shape(layers: int, hidden: int, wide: int, heads: int, kv: int, vocab: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    }


# Shapes alone, as the checkpoints' config.json have them.
MODELS: dict[str, dict[str, Any]] = {
    "Llama-2-13b": _LLAMA | _shape(40, 5120, 13824, 40, 40, 32000),
    "Llama-3.1-8B": _LLAMA | _shape(32, 4096, 14336, 32, 8, 128256),
    "Qwen2.5-14B": _QWEN2 | _shape(48, 5120, 13824, 40, 8, 152064),
    "Qwen2.5-32B": _QWEN2 | _shape(64, 5120, 27648, 40, 8, 152064),
}
CONTEXTS = (1024, 2048, 4096)


@dataclass(frozen=True)
class Size:
    """One line of the table. 0 sequences: the model, or one sequence of it, does not fit."""

    model: str
    gpu: str
    context: int
    sequences: int
    tokens_per_second: float
    kv_share: float

    def to_dict(self) -> dict[str, Any]:
        """The values by name, and that they are computed."""
        return asdict(self) | {"computed": True}


def known_model(name: str) -> ModelConfig:
    """The shape of a model of the table.

    Raises:
        ValueError: another name.
    """
    if name not in MODELS:
        raise ValueError(f"model is {name!r}: it must be a folder or one of {', '.join(MODELS)}")
    return parse_model_config(MODELS[name])


def sequences(model: ModelConfig, gpu: Gpu, context: int) -> int:
    """How many sequences of `context` tokens fit beside bf16 weights, as the engine counts them."""
    free = CUDA_SHARE * (gpu.memory - 2 * model.num_parameters - OVERHEAD_BYTES)
    extent = -(-context // SLOT_GRAIN) * SLOT_GRAIN * bytes_per_slot(model, torch.bfloat16)
    return max(0, int(free // extent))


def step_seconds(model: ModelConfig, gpu: Gpu, batch: int, context: int) -> tuple[float, float]:
    """The least time of a plain decode step, and the share of the KV cache in what it reads.

    Every sequence stands at `context` tokens. Of an embedding that is not the head, a step reads
    only a row for each sequence.
    """
    embedding = 0 if model.tied else model.vocab_size * model.hidden_size
    weights = 2 * (model.num_parameters - embedding)
    cache = batch * context * bytes_per_slot(model, torch.bfloat16)
    # Two operations for each weight and token, and for each cached number and query head.
    group = model.num_heads / model.num_kv_heads
    work = batch * weights + cache * group
    return max((weights + cache) / gpu.bandwidth, work / gpu.flops), cache / (weights + cache)


def size(name: str, model: ModelConfig, gpu: Gpu, context: int) -> Size:
    """One line for a model on a GPU with full memory."""
    batch = sequences(model, gpu, context)
    if not batch:
        return Size(name, gpu.name, context, 0, 0.0, 0.0)
    seconds, share = step_seconds(model, gpu, batch, context)
    return Size(name, gpu.name, context, batch, batch / seconds, share)


def table(
    models: Mapping[str, ModelConfig], gpus: Sequence[Gpu], contexts: Sequence[int]
) -> list[Size]:
    """All combinations."""
    return [size(n, m, g, c) for n, m in models.items() for c in contexts for g in gpus]


def markdown(sizes: Sequence[Size]) -> str:
    """A table of models and contexts by GPU: "sequences / tokens per second"."""
    gpus = list(dict.fromkeys(s.gpu for s in sizes))
    cells = {(s.model, s.context, s.gpu): s for s in sizes}
    lines = ["| model | context | " + " | ".join(gpus) + " |", "|---" * (2 + len(gpus)) + "|"]
    for model, context in dict.fromkeys((s.model, s.context) for s in sizes):
        row = [_cell(cells[model, context, gpu]) for gpu in gpus]
        lines.append(f"| {model} | {context:,} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def _cell(found: Size) -> str:
    if not found.sequences:
        return "-"
    return f"{found.sequences} / {float(f'{found.tokens_per_second:.2g}'):,.0f}"
