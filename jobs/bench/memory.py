"""Whether the models and caches of a run fit into memory, before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.bench.measure import Shape
from jobs.bench.systems import System
from pipeline.machine import container

if TYPE_CHECKING:
    from admg.families import ModelConfig

# A process with torch, and the activations of a pass.
PROCESS_BYTES = 500 * 2**20
# transformers' cache grows by concatenation: old and new lie side by side for a moment.
_GROWING = 2


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that the run will take, and the largest batch with its longest sequence."""

    total: int
    batch: int
    length: int


def model_shape(config: ModelConfig, bytes_per_parameter: int) -> Shape:
    """What a pass of this model reads and computes."""
    embedding = 0 if config.tied else config.vocab_size * config.hidden_size
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return Shape(
        matmul_parameters=config.num_parameters - embedding,
        bytes_per_parameter=bytes_per_parameter,
        kv_bytes_per_token=per_token * bytes_per_parameter,
        attention_width=config.num_layers * config.num_heads * config.head_dim,
    )


def needed(
    systems: Sequence[System],
    config: ModelConfig,
    shape: Shape,
    batches: Sequence[int],
    prompts: int,
    length: int,
) -> Need:
    """An estimate: every system keeps its own weights and the cache of the largest batch.

    Args:
        systems: one process each, all alive at once.
        config: the model's.
        shape: the same model's, with the bytes of a parameter.
        batches: the batch sizes of the grid.
        prompts: sequences of a run, so no more than that decode together.
        length: tokens of the longest sequence, completion included.
    """
    total = 0
    for system in systems:
        batch = max((min(b, prompts) for b in batches if system.runs(b)), default=1)
        cache = batch * length * shape.kv_bytes_per_token
        grows = system.kind in ("transformers", "transformers-lookup")
        total += config.num_parameters * shape.bytes_per_parameter
        total += cache * (_GROWING if grows else 1) + PROCESS_BYTES
    return Need(total, max(batches), length)


def check_memory(need: Need, available: int) -> None:
    """Refuse a run that would not fit.

    Raises:
        ValueError: with the numbers.
    """
    if need.total > available:
        raise ValueError(
            f"--batch is {need.batch}: with sequences of up to {need.length} tokens and one model "
            f"per --system the run needs about {_gib(need.total)}, and {_gib(available)} are free: "
            "it must be a smaller batch, fewer systems or shorter prompts"
        )


def available_bytes() -> int:
    """Memory that new processes can take: of the CUDA device if there is one, else of the host."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    found = [_host_bytes()]
    limit, used = container("memory.max"), container("memory.current")
    if limit.isdigit() and used.isdigit():
        found.append(int(limit) - int(used))
    return min(found)


def _host_bytes() -> int:
    info = Path("/proc/meminfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
