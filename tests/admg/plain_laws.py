"""Sampling laws in fp64, one token after the other: the reference of the sampler's tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from admg import noise
from admg.config import SamplingParams
from admg.sampling import LawRow


def row(
    *,
    position: int = 0,
    banned: tuple[int, ...] = (),
    seen: Sequence[int] = (),
    key: str = "row",
    salt: int = 0,
    **fields: Any,
) -> LawRow:
    params = SamplingParams(**({"temperature": 1.0} | fields))
    base = noise.stream(params.seed, key)
    return LawRow(params, base, position, banned, lambda: seen, salt)


def reference(logits: Sequence[float], law_row: LawRow) -> tuple[np.ndarray, float]:
    """The law in fp64, token by token, and how near the closest call of its cuts was."""
    s, near = law_row.sampling, math.inf
    z = [float(x) for x in logits]
    for token in set(law_row.seen() if law_row.seen else ()):
        z[token] = (
            z[token] / s.repetition_penalty if z[token] > 0 else z[token] * s.repetition_penalty
        )
    for token in law_row.banned:
        z[token] = -math.inf
    order = sorted((t for t in range(len(z)) if z[t] > -math.inf), key=lambda t: -z[t])
    law = np.zeros(len(z))
    if s.temperature == 0:
        law[order[0]] = 1
        return law, z[order[0]] - z[order[1]] if len(order) > 1 else near
    if 0 < s.top_k < len(order):
        near = z[order[s.top_k - 1]] - z[order[s.top_k]]
        order = order[: s.top_k]
    weights = np.array([math.exp((z[t] - z[order[0]]) / s.temperature) for t in order])
    weights /= weights.sum()
    kept, mass = [], 0.0
    for weight in weights:
        near = min(near, abs(mass - s.top_p)) if s.top_p < 1 else near
        if s.top_p < 1 and mass >= s.top_p:
            break
        mass += weight
        kept.append(weight)
    near = min([near, *(abs(w - s.min_p * kept[0]) for w in kept)]) if s.min_p else near
    kept = [w for w in kept if w >= s.min_p * kept[0]]
    law[order[: len(kept)]] = np.array(kept) / sum(kept)
    return law, near


def spread_logits(vocab: int, seed: int) -> list[float]:
    """Logits without ties: shuffled steps of a random size."""
    generator = np.random.default_rng(seed)
    steps = generator.exponential(2.0 / math.sqrt(vocab), size=vocab) + 0.01
    return (generator.permutation(np.cumsum(steps)) - steps.sum() / 2).astype(np.float32).tolist()
