"""How long the device takes for something."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def device_seconds(device: torch.device, run: Callable[[], object]) -> float:
    """Seconds that the device spends on what `run` starts there: by events on CUDA.

    Where the host is the device they are wall seconds.
    """
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")  # type: ignore[no-untyped-call]
    stream = torch.cuda.current_stream(device)
    begin.record(stream)
    run()
    end.record(stream)
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3
