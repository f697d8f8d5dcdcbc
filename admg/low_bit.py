"""Matrix products with weights of 8 or 4 bits: for drafts, the target's own weights stay.

Shapes: T tokens, I inputs, O outputs, g inputs of a group.

int8: one scale per output, symmetric; a product needs half the bytes of bf16. int4: a scale and a
zero per output and group of 32 inputs; under a third of them. Both are rounded to the nearest
number, no calibration. torch's CPU kernels multiply what they unpack in registers: they win for few
tokens in a pass and lose for many.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from admg.config import LowBit

Product = Callable[[Tensor], Tensor]

_GROUP = 32
# The packed form of int4 holds outputs in runs of this many.
_OUTPUTS = 16
_OPERATIONS = {
    "int8": ("_weight_int8pack_mm",),
    "int4": ("_weight_int4pack_mm_for_cpu", "_convert_weight_to_int4pack_for_cpu"),
}


def check_low_bit(kind: LowBit, device: torch.device | str) -> None:
    """Refuse weights that no kernel here can multiply.

    Raises:
        ValueError: naming what is missing.
    """
    device = torch.device(device)
    if device.type != "cpu":
        raise ValueError(
            f"draft_weights is {kind!r}: it must be full on {device.type}, there are kernels for "
            "the CPU only"
        )
    missing = [name for name in _OPERATIONS[kind] if not hasattr(torch.ops.aten, name)]
    if missing:
        raise ValueError(
            f"draft_weights is {kind!r}: it must be full with torch {torch.__version__}, which "
            f"lacks {missing[0]}"
        )


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
        outputs, inputs = weight.shape
        groups = weight.float().view(outputs, inputs // _GROUP, _GROUP)
        low, high = groups.amin(-1), groups.amax(-1)  # [O, I/g]
        scale = (high - low).clamp_(min=1e-12) / 15
        levels = ((groups - low[:, :, None]) / scale[:, :, None]).round_().clamp_(0, 15)
        self._weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(
            levels.to(torch.int32).view(outputs, inputs), 1
        )
        # The kernel counts levels from 8: what it adds is the value of that level.
        stacked = torch.stack([scale, low + 8 * scale], dim=-1)  # [O, I/g, 2]
        self._scale_and_zero = stacked.transpose(0, 1).contiguous().to(weight.dtype)
        self._bias = bias

    @classmethod
    def fits(cls, weight: Tensor) -> bool:
        """Whether the kernel takes this shape."""
        return weight.shape[1] % _GROUP == 0 and weight.shape[0] % _OUTPUTS == 0

    @property
    def nbytes(self) -> int:
        """Bytes held beside the target's."""
        return int(self._weight.nbytes + self._scale_and_zero.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        """The product."""
        out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x, self._weight, _GROUP, self._scale_and_zero
        )
        return out if self._bias is None else out + self._bias


def low_bit_linear(kind: LowBit, weight: Tensor, bias: Tensor | None) -> Int8Linear | Int4Linear:
    """The product with a weight [O, I]; int8 where the shape does not go into int4's groups."""
    if kind == "int4" and Int4Linear.fits(weight):
        return Int4Linear(weight, bias)
    return Int8Linear(weight, bias)
