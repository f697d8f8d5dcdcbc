"""Verification as pure functions: which draft tokens stay, and the law of the token after them.

Shapes: B sequences, K most draft tokens of a sequence in the round, V vocabulary. Column j of a
sequence is its j-th draft token; columns at or past its own length are padding and never count.

- shared noise: draft and target token of a position are drawn with the same noise; a draft token
  is accepted iff it equals the target's (Daliri, Musco, Suresh, arXiv 2408.07978).
- token verification by rejection (Leviathan et al. 2211.17192, Chen et al. 2302.01318).
"""

from __future__ import annotations

import torch
from torch import Tensor


def accept_shared(drafts: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
    """Accepted draft tokens per sequence: the longest prefix equal to the target's own tokens.

    Args:
        drafts: [B, K] int64.
        lengths: [B] int64, drafts of each sequence.
        targets: [B, K+1] or [B, K] int64, the target's draw at each position.

    Returns:
        [B] int64. The next committed token of sequence b is targets[b, accepted[b]].
    """
    return _prefix(drafts == targets[:, : drafts.shape[1]], lengths)


def accept_token(drafts: Tensor, lengths: Tensor, p: Tensor, q: Tensor, u: Tensor) -> Tensor:
    """Accepted draft tokens per sequence by rejection: accept iff u q(x) < p(x), strictly.

    Strict and without division, so a token of target probability 0 is never accepted, whatever
    the uniform number. `q` must be the law that the draft token was drawn from.

    Args:
        drafts: [B, K] int64.
        lengths: [B] int64.
        p: [B, K, V] fp32 or fp64, target laws at the draft positions.
        q: [B, K, V], draft laws.
        u: [B, K] uniform numbers of [0, 1).

    Returns:
        [B] int64.
    """
    px = p.gather(2, drafts[..., None])[..., 0]
    qx = q.gather(2, drafts[..., None])[..., 0]
    return _prefix(u * qx < px, lengths)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """The law [B, V] of the recovered token: (p - q)+ normalised, or p where nothing is left.

    Nothing is left only where p = q up to rounding, and then no draft token is rejected but by
    rounding. For the bonus token after full acceptance pass q = 0: the law is p.
    """
    rest = (p - q).clamp_min(0)
    total = rest.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, rest / total.where(total > 0, torch.ones_like(total)), p)


def _prefix(match: Tensor, lengths: Tensor) -> Tensor:
    columns = torch.arange(match.shape[1], device=match.device)
    return (match & (columns < lengths[:, None])).long().cumprod(dim=1).sum(dim=1)
