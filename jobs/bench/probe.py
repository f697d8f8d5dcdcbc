"""The machine's peaks, by two small probes: a matrix product and a pass over memory."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

_REPEATS = 5
_CPU_SIDE, _CUDA_SIDE = 2048, 8192
_CPU_BYTES, _CUDA_BYTES = 256 * 2**20, 4 * 2**30


@torch.inference_mode()
def peaks(dtype: str) -> dict[str, float | str]:
    """Best of a few: billions of operations per second of a square product in `dtype`, and of
    bytes per second, read by a sum or read and written by a copy.
    """
    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    side = _CUDA_SIDE if cuda else _CPU_SIDE
    a = torch.randn(side, side, device=device).to(getattr(torch, dtype))
    count = (_CUDA_BYTES if cuda else _CPU_BYTES) // 4
    source = torch.ones(count, device=device)
    target = torch.zeros(count, device=device)
    size = 4 * count
    summed = size / _best(source.sum)
    copied = 2 * size / _best(lambda: target.copy_(source))
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "peak_gflops": 2 * side**3 / _best(lambda: a @ a) / 1e9,
        "peak_gbs": max(summed, copied) / 1e9,
    }


def _best(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_REPEATS + 1):  # the first one pays for libraries and pages warming up
        synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def synchronize() -> None:
    """Wait for the device, so that a timestamp means what it says."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
