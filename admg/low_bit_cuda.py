"""Products with small weights on CUDA, and on other devices that have the same operations.

Shapes: T tokens, I inputs, O outputs, g inputs of a group.

int4: a scale and a zero per output and group of 32 inputs, through torch's tensor-core kernel, in
bf16. fp8: a scale per output, inputs rounded to fp8 with a scale per token, through
`torch._scaled_mm`. Both win where reading weights is what a product costs, and lose beyond: so each
product with them stands beside the target's own, and which one is taken is measured, once for each
number of tokens and each shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from admg.clock import device_seconds
from admg.int4_groups import GROUP, int4_levels
from admg.linear import Linear

# Outputs come in runs of this many, inputs in 16 times one of these.
_OUTPUTS = 8
_INNER_TILES = (8, 4, 2)
_FP8 = torch.float8_e4m3fn
_LARGEST_FP8 = 448.0
_FP8_GRAIN = 16
_REPEATS = 5


class Int4CudaLinear:
    """x [T, I] bf16 -> x @ weight.T + bias [T, O], of a weight in 4 bits in groups of 32."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        whole, self._scale_and_zero = int4_levels(weight)
        levels = whole.to(torch.uint8)
        pairs = levels[:, ::2] << 4 | levels[:, 1::2]
        tiles = next(n for n in _INNER_TILES if weight.shape[1] % (16 * n) == 0)
        self._weight = torch.ops.aten._convert_weight_to_int4pack(pairs, tiles)
        self._bias = bias

    @classmethod
    def fits(cls, weight: Tensor) -> bool:
        """Whether the kernel takes this shape."""
        outputs, inputs = weight.shape
        return outputs % _OUTPUTS == 0 and inputs % (16 * _INNER_TILES[-1]) == 0

    @property
    def nbytes(self) -> int:
        """Bytes held beside the target's."""
        return int(self._weight.nbytes + self._scale_and_zero.nbytes)

    def __call__(self, x: Tensor) -> Tensor:
        """The product."""
        out: Tensor = torch.ops.aten._weight_int4pack_mm(
            x, self._weight, GROUP, self._scale_and_zero
        )
        return out if self._bias is None else out + self._bias


class Fp8Linear:
    """x [T, I] -> x @ weight.T + bias [T, O], both sides rounded to fp8 by rows; sums in fp32."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._scale = _row_scale(weight)  # [O, 1]
        self._weight = (weight.float() / self._scale).to(_FP8)  # [O, I]
        self._bias = bias

    @classmethod
    def fits(cls, weight: Tensor) -> bool:
        """Whether the kernel takes this shape."""
        return all(size % _FP8_GRAIN == 0 for size in weight.shape)

    @property
    def nbytes(self) -> int:
        """Bytes held beside the target's."""
        return self._weight.nbytes + self._scale.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """The product."""
        scale = _row_scale(x)  # [T, 1]
        out: Tensor = torch._scaled_mm(
            (x.float() / scale).to(_FP8),
            self._weight.t(),
            scale_a=scale,
            scale_b=self._scale.t(),
            out_dtype=torch.bfloat16,
        )
        out = out.to(x.dtype)
        return out if self._bias is None else out + self._bias


def _row_scale(rows: Tensor) -> Tensor:
    """What brings the largest number of each row [R, n] to fp8's largest: [R, 1] fp32."""
    return rows.abs().amax(1, keepdim=True).float().clamp_(min=1e-12) / _LARGEST_FP8


class SmallProduct(Protocol):
    """A product with weights of its own."""

    @property
    def nbytes(self) -> int:
        """Bytes of these weights."""

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, I] to [T, O]."""


class Tried:
    """Times two ways to the same product, and remembers which is faster for what.

    Args:
        seconds: what one call takes on a device.
    """

    def __init__(
        self, seconds: Callable[[torch.device, Callable[[], object]], float] = device_seconds
    ) -> None:
        self._seconds = seconds
        self._faster: dict[tuple[int, torch.Size], bool] = {}

    def pays(
        self, x: Tensor, shape: torch.Size, small: Callable[..., Tensor], full: Linear
    ) -> bool:
        """Whether `small` is faster than `full` for inputs like x and a weight of this shape.

        Nothing is timed within a capture: there the small one is taken, unless it is known to lose.
        """
        key = (len(x), shape)
        if key not in self._faster:
            if x.is_cuda and torch.cuda.is_current_stream_capturing():
                return True
            self._faster[key] = self._shortest(x, small) <= self._shortest(x, full)
        return self._faster[key]

    def _shortest(self, x: Tensor, product: Callable[[Tensor], Tensor]) -> float:
        product(x)
        return min(self._seconds(x.device, lambda: product(x)) for _ in range(_REPEATS))


class EitherLinear:
    """A product with small weights where that is faster, else with the target's own.

    Args:
        small: with weights of its own.
        full: with the target's, which take no more memory here.
        shape: of the weight, [O, I].
        tried: what is known of such products; one for all of a model.
    """

    def __init__(self, small: SmallProduct, full: Linear, shape: torch.Size, tried: Tried) -> None:
        self._small, self._full, self._shape, self._tried = small, full, shape, tried

    @property
    def nbytes(self) -> int:
        """Bytes held beside the target's."""
        return self._small.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """The product."""
        pays = self._tried.pays(x, self._shape, self._small, self._full)
        return self._small(x) if pays else self._full(x)
