"""Rotary position embedding.

Shapes: T tokens of a pass, P positions of a table, d head size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from admg.config_fields import refuse

_ROPE_FIELDS: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "llama3": frozenset(
        {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    ),
    "yarn": frozenset(
        {"factor", "original_max_position_embeddings", "attention_factor", "beta_fast"}
        | {"beta_slow", "mscale", "mscale_all_dim", "truncate"}
    ),
}
_ROPE_COMMON = frozenset({"rope_type", "type", "rope_theta"})


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotation speeds of a head's d/2 pairs, as transformers computes them in fp32.

    `attention_scaling` multiplies cosine and sine (yarn; 1 otherwise).
    """

    inv_freq: tuple[float, ...]
    attention_scaling: float = 1.0


def check_rope_fields(raw: Mapping[str, Any]) -> None:
    """Refuses rotations that depend on the length of the text, and contradictions.

    Raises:
        ValueError: by field and value.
    """
    given = {n: raw[n] for n in ("rope_parameters", "rope_scaling") if raw.get(n)}
    for name, rope in given.items():
        refuse(not isinstance(rope, dict), name, rope, "an object")
        kind = rope.get("rope_type", rope.get("type", "default"))
        known = isinstance(kind, str) and kind in _ROPE_FIELDS
        refuse(not known, f"{name}.rope_type", kind, " or ".join(_ROPE_FIELDS))
        for key, value in rope.items():
            if key == "partial_rotary_factor" and value in (1, None):
                continue
            known = key in _ROPE_COMMON | _ROPE_FIELDS[kind]
            refuse(not known, f"{name}.{key}", value, f"absent with rope_type {kind!r}")
            number = key in ("type", "rope_type") or isinstance(value, int | float | None)
            refuse(not number, f"{name}.{key}", value, "a number")
        theta = rope.get("rope_theta", raw.get("rope_theta"))
        top = raw.get("rope_theta")
        refuse(top is not None and top != theta, "rope_theta", top, f"{theta!r}, as in {name}")
    if len(given) == 2:
        new, old = given["rope_parameters"], dict(given["rope_scaling"])
        old["rope_type"] = old.get("rope_type", old.pop("type", "default"))
        same = all(new.get(key, value) == value for key, value in old.items())
        refuse(not same, "rope_scaling", old, "the same as rope_parameters")


def read_rope(config: Any) -> RopeConfig:
    """The rotation speeds from a configuration that transformers has normalised."""
    rope = config.rope_parameters
    kind, theta, dim = rope["rope_type"], rope["rope_theta"], config.head_dim
    refuse(not (isinstance(theta, int | float) and theta > 0), "rope_theta", theta, "above 0")
    if kind == "default":  # the one kind that transformers keeps inside its model classes
        steps = torch.arange(0, dim, 2, dtype=torch.int64).to(torch.float) / dim
        inv_freq, scaling = 1.0 / (theta**steps), 1.0
    else:
        try:
            inv_freq, scaling = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
        except (ValueError, TypeError, KeyError, ArithmeticError) as error:
            raise ValueError(f"rope fields {rope} in config.json do not work: {error}") from error
    speeds = tuple(float(speed) for speed in inv_freq.double().tolist())
    refuse(not all(map(math.isfinite, speeds)), "rope_parameters", rope, "finite rotations")
    return RopeConfig(speeds, float(scaling))


def rope_tables(
    rope: RopeConfig, length: int, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and signed sines of the positions 0 to `length` - 1, fp32 [P, d] each.

    Both halves of a head share their angles; the first half's sines are negated here, so that
    `apply_rope` needs no negation. Angles are products in fp32, as in transformers, so that long
    positions agree to the last bit.
    """
    speeds = torch.tensor(rope.inv_freq, dtype=torch.float32, device=device)
    positions = torch.arange(length, dtype=torch.float32, device=device)
    angles = positions[:, None] * speeds
    cos, sin = angles.cos() * rope.attention_scaling, angles.sin() * rope.attention_scaling
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates heads [T, heads, d] by the tables' rows at the tokens' positions, fp32 [T, d].

    Element i of a head is paired with element i + d/2, and the sums are made in fp32 whatever x
    is. A roll of the last axis swaps the halves: on a CPU this is half the time of rotating them
    apart and joining them.
    """
    wide = x.float()
    swapped = wide.roll(x.shape[-1] // 2, -1)
    return torch.addcmul(wide * cos[:, None], swapped, sin[:, None]).to(x.dtype)
