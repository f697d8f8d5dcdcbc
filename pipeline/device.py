"""The GPU that an actor has: Ray's choice, checked and prepared before torch touches it.

Ray gives an actor its GPUs by `CUDA_VISIBLE_DEVICES`, so the one that it may use is the first that
torch sees there, whatever its number on the machine.
"""

from __future__ import annotations

import os
import sys

# Segments that grow in place: KV arena, weights and graphs are large and live for long, and what
# is left between them must not be lost in pieces. The old name is what older scripts set.
ALLOCATOR = "PYTORCH_ALLOC_CONF"
_OLD_ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"
EXPANDABLE = "expandable_segments:True"


class NoDeviceError(RuntimeError):
    """An actor was given a GPU that torch does not see: it is lost, or torch is built without."""


def device_for(gpus: float | None) -> str:
    """The device for the model of an actor that has so many GPUs (None: no actor, any device).

    To be called before anything else uses CUDA in this process. An actor with a GPU never falls
    back to the CPU: where the device is lost, the process ends, and Ray starts it anew, where
    there is one.

    Raises:
        NoDeviceError: there is no device to use.
    """
    if gpus == 0:
        return "cpu"
    if not os.environ.get(_OLD_ALLOCATOR):
        os.environ.setdefault(ALLOCATOR, EXPANDABLE)
    if gpus is None:
        return "auto"
    import torch

    if not torch.cuda.is_available():
        given = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
        built = f"torch {torch.__version__}"
        raise NoDeviceError(
            f"this actor was given a GPU (CUDA_VISIBLE_DEVICES is {given!r}), and {built} sees no "
            "CUDA device: the device is lost, its driver does not answer, or this torch is built "
            "without CUDA"
        )
    return "cuda"


class LoadingShown:
    """Says on standard error, which Ray keeps in the worker's log, how much of a model is there."""

    def __init__(self, every: int = 10) -> None:
        self._every = every
        self._shown = 0

    def __call__(self, done: int, total: int) -> None:
        """Bytes of weights that are in their place, of how many; told at every tenth."""
        part = self._every * done // max(total, 1)
        if part > self._shown:
            self._shown = part
            sys.stderr.write(f"weights: {done / 1e9:.1f} of {total / 1e9:.1f} GB\n")
            sys.stderr.flush()
