"""Matrix products with weights of 8 or 4 bits: for drafts, the target's own weights stay.

Shapes: T tokens, I inputs, O outputs, g inputs of a group.

int8: one scale per output, symmetric; a product needs half the bytes of bf16. int4: a scale and a
zero per output and group of 32 inputs; under a third of them. fp8: as int8, in floating point.
All are rounded to the nearest number, no calibration. torch's CPU kernels multiply what they unpack
in registers: they win for few tokens in a pass and lose for many. On CUDA see `low_bit_cuda`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from admg.config import LowBit
from admg.int4_groups import GROUP, int4_levels
from admg.linear import Linear
from admg.low_bit_cuda import EitherLinear, Fp8Linear, Int4CudaLinear, Tried

Product = Callable[[Tensor], Tensor]

# The packed form of int4 holds outputs in runs of this many.
_OUTPUTS = 16
_OPERATIONS = {
    ("int8", "cpu"): ("_weight_int8pack_mm",),
    ("int4", "cpu"): ("_weight_int4pack_mm_for_cpu", "_convert_weight_to_int4pack_for_cpu"),
    ("fp8", "cpu"): ("_scaled_mm",),
    ("int8", "cuda"): ("_weight_int8pack_mm",),
    ("int4", "cuda"): ("_weight_int4pack_mm", "_convert_weight_to_int4pack"),
    ("fp8", "cuda"): ("_scaled_mm",),
}
# Compute capabilities on CUDA.
_CAPABILITY = {"int8": (8, 0), "int4": (8, 0), "fp8": (8, 9)}


def check_low_bit(
    kind: LowBit, device: torch.device | str, dtype: torch.dtype | None = None
) -> None:
    """Refuse weights that no kernel can multiply.

    Args:
        kind: of the weights.
        device: where they are to be. What CUDA has is known only where it is.
        dtype: of the model, if it is known.

    Raises:
        ValueError: naming what is missing.
    """
    device = torch.device(device)
    head = f"draft_weights is {kind!r}: it must be full"
    names = _OPERATIONS.get((kind, device.type))
    if names is None:
        raise ValueError(f"{head} on {device.type}, there are kernels for the CPU and CUDA only")
    if device.type == "cuda" and dtype not in (None, torch.bfloat16):
        raise ValueError(f"{head} with the dtype {dtype}: the kernels on CUDA know bfloat16 only")
    if device.type == "cuda" and not torch.cuda.is_available():
        return
    key = device.type.upper()
    for name in names:
        there = hasattr(torch.ops.aten, name) and (
            torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", key)
        )
        if not there:
            version = torch.__version__
            raise ValueError(f"{head} with torch {version}, which lacks {name} for {device.type}")
    if device.type == "cpu":
        return
    least, found = _CAPABILITY[kind], torch.cuda.get_device_capability(device)
    if found < least:
        shown = [".".join(map(str, pair)) for pair in (found, least)]
        raise ValueError(f"{head} on a device of compute capability {shown[0]}, below {shown[1]}")


class Int8Linear:
    """x [T, I] -> x @ weight.T + bias [T, O], of a weight rounded to 8 bits per output."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        scale = weight.abs().amax(1, keepdim=True).float().clamp_(min=1e-12) / 127
        self._weight = (weight.float() / scale).round_().to(torch.int8)  # [O, I]
        self._scale = scale[:, 0].to(weight.dtype)  # [O]
        self._bias = bias

    @property
    def nbytes(self) -> int:
        """Bytes held beside the target's."""
        return self._weight.nbytes + self._scale.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """The product."""
        out: Tensor = torch.ops.aten._weight_int8pack_mm(x, self._weight, self._scale)
        return out if self._bias is None else out + self._bias


class Int4Linear:
    """x [T, I] -> x @ weight.T + bias [T, O], of a weight rounded to 4 bits in groups of 32."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        levels, self._scale_and_zero = int4_levels(weight)
        self._weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels.to(torch.int32), 1)
        self._bias = bias

    @classmethod
    def fits(cls, weight: Tensor) -> bool:
        """Whether the kernel takes this shape."""
        return weight.shape[1] % GROUP == 0 and weight.shape[0] % _OUTPUTS == 0

    @property
    def nbytes(self) -> int:
        """Bytes held beside the target's."""
        return int(self._weight.nbytes + self._scale_and_zero.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        """The product."""
        out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x, self._weight, GROUP, self._scale_and_zero
        )
        return out if self._bias is None else out + self._bias


Small = Int8Linear | Int4Linear | Int4CudaLinear | Fp8Linear


def low_bit_linear(
    kind: LowBit, weight: Tensor, bias: Tensor | None, tried: Tried
) -> Small | EitherLinear:
    """The product with a weight [O, I]; int8 where the shape does not go into what was asked for.

    On CUDA, where the target's own weight needs no copy to stand beside it, the faster of both.
    """
    small = _small(kind, weight, bias)
    if weight.device.type != "cuda":
        return small
    return EitherLinear(small, Linear(weight, bias), weight.shape, tried)


def _small(kind: LowBit, weight: Tensor, bias: Tensor | None) -> Small:
    if kind == "fp8" and Fp8Linear.fits(weight):
        return Fp8Linear(weight, bias)
    if kind == "int4" and weight.device.type == "cuda" and Int4CudaLinear.fits(weight):
        return Int4CudaLinear(weight, bias)
    if kind == "int4" and weight.device.type == "cpu" and Int4Linear.fits(weight):
        return Int4Linear(weight, bias)
    return Int8Linear(weight, bias)
