"""Noise as a pure function: a counter-based hash turned into exponential random numbers.

Shapes: N rows (one law each), C candidate tokens of a row.

A row's noise at a position depends on (seed, row key, position, purpose, token id) and on nothing
else: not on the batch, the order, the drafter or the device (integer operations give the same bits
everywhere). `argmax p / E` with independent E ~ Exp(1) per token is an exact draw from p; it is the
Gumbel-max trick with one logarithm, since -log E is Gumbel noise (DESIGN §4.2).
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX1 = 0xBF58476D1CE4E5B9
_MIX2 = 0x94D049BB133111EB

# Numbers per chunk on CPU: the hash is a chain of element-wise steps, 80 times faster in cache.
_CHUNK = 1 << 16

# Purposes: independent streams at one position.
TARGET = 0
DRAFT = 1
RESIDUAL = 2
ACCEPT = 3


def stream(seed: int, key: str) -> int:
    """The 64-bit base of a row's noise."""
    digest = hashlib.blake2b(f"{seed}\x00{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def position_key(base: int, position: int, purpose: int = TARGET, salt: int = 0) -> int:
    """The signed 64-bit key of one (row, position, purpose): SplitMix64 of the counter.

    `salt` tells repeated draws at one position apart (rejection verification numbers its rounds).
    """
    z = (base + _GOLDEN * ((((salt << 32) + position) << 2) + purpose + 1)) & _MASK64
    z = ((z ^ (z >> 30)) * _MIX1) & _MASK64
    z = ((z ^ (z >> 27)) * _MIX2) & _MASK64
    return signed(z ^ (z >> 31))


def position_keys(bases: Tensor, positions: Tensor) -> Tensor:
    """`position_key` of many rows at once, for `TARGET` and without salt: int64 [N] of int64 [N].

    int64 wraps around as the 64-bit arithmetic there does.
    """
    return _mix_(bases + ((positions << 2) + (TARGET + 1)) * signed(_GOLDEN))


def token_hash(token_ids: Tensor) -> Tensor:
    """Well-mixed int64 hashes of token ids; worth keeping for a whole vocabulary."""
    return _mix_(token_ids + 1)


def exponential(keys: Tensor, hashes: Tensor) -> Tensor:
    """Exp(1) numbers fp64 [N, C].

    Args:
        keys: [N] int64 position keys.
        hashes: `token_hash` of the tokens, [C] for all rows alike or [N, C].
    """
    rows = hashes.expand(len(keys), hashes.shape[-1])
    out = torch.empty(rows.shape, dtype=torch.float64, device=rows.device)
    step = max(1, _CHUNK // max(1, rows.shape[1])) if rows.device.type == "cpu" else len(rows)
    for i in range(0, len(rows), step):
        part = slice(i, i + step)
        z = _mix_(rows[part] ^ keys[part, None])
        # 52 signed bits and a half: exact in fp64, and neither 0 nor 1 can come out.
        u = out[part].copy_(z.bitwise_right_shift_(12)).add_(0.5).mul_(2.0**-52).add_(0.5)
        u.log_().neg_()
    return out


def uniform(keys: list[int]) -> Tensor:
    """One uniform number of the open interval (0, 1) per position key: fp64 [N]."""
    z = _mix_(torch.tensor(keys, dtype=torch.int64)).bitwise_right_shift_(12)
    return z.double().add_(0.5).mul_(2.0**-52).add_(0.5)


def race(probabilities: Tensor, noise: Tensor) -> Tensor:
    """Column [N] int64 of each row's winner: argmax p / E, an exact draw from p [N, C]."""
    return (probabilities.double() / noise).argmax(dim=-1)


def _mix_(z: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, in place (two's complement multiplies to the same bits)."""
    spare = torch.empty_like(z)
    for shift, factor in ((30, _MIX1), (27, _MIX2)):
        # The mask turns the arithmetic shift into a logical one.
        torch.bitwise_right_shift(z, shift, out=spare)
        z.bitwise_xor_(spare.bitwise_and_((1 << (64 - shift)) - 1)).mul_(signed(factor))
    torch.bitwise_right_shift(z, 31, out=spare)
    return z.bitwise_xor_(spare.bitwise_and_((1 << 33) - 1))


def signed(z: int) -> int:
    """The int64 of the same 64 bits."""
    return z - (1 << 64) if z >> 63 else z
