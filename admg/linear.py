"""Matrix products with weights: packed once for the CPU's bf16 kernels, plain elsewhere.

Shapes: T tokens, I inputs, O outputs.

`F.linear` lays a bf16 weight out anew at every call with few tokens; a packed weight makes the
products of a pass over 16 tokens 1.9 times and over 5 tokens 1.8 times as fast, and those of a
prefill no slower (`deploy/records/packed_weights.md`). fp32 stays plain: packed it is faster too,
but strays further from fp64 than transformers does, and fp32 is the mode for exactness.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Tokens per pass that the layout is made for; measured to be as good for 1 and for 770.
PACKED_FOR = 16


class Linear:
    """x [T, I] -> x @ weight.T + bias [T, O]. Takes the weight [O, I] over."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._bias = bias
        self._packed = _can_pack(weight)
        self._weight = (
            torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR) if self._packed else weight
        )

    def __call__(self, x: Tensor) -> Tensor:
        """The product."""
        if not self._packed:
            return F.linear(x, self._weight, self._bias)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, "none", [], ""
        )
        return out


def _can_pack(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
