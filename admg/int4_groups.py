"""Weights rounded to 4 bits in groups: the numbers that all int4 kernels of torch multiply.

Shapes: I inputs, O outputs, g inputs of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Inputs that share a scale and a zero.
GROUP = 32


def int4_levels(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight [O, I] as the nearest of 16 levels between the ends of each group.

    Returns:
        Levels [O, I] fp32, whole numbers from 0 to 15; scales and zeros [I/g, O, 2] in the weight's
        dtype. The kernels count levels from 8, so a zero is the value of that level.
    """
    outputs, inputs = weight.shape
    groups = weight.float().view(outputs, inputs // GROUP, GROUP)
    low, high = groups.amin(-1), groups.amax(-1)  # [O, I/g]
    scale = (high - low).clamp_(min=1e-12) / 15
    levels = ((groups - low[:, :, None]) / scale[:, :, None]).round_().clamp_(0, 15)
    stacked = torch.stack([scale, low + 8 * scale], dim=-1)  # [O, I/g, 2]
    scale_and_zero = stacked.transpose(0, 1).contiguous().to(weight.dtype)
    return levels.view(outputs, inputs), scale_and_zero
