"""Verification as pure functions: which draft tokens stay, and the law of the token after them.

Shapes: B sequences, K most draft tokens of a sequence in the round, V vocabulary. Column j of a
sequence is its j-th draft token; columns at or past its own length are padding and never count.

- shared noise: draft and target token of a position are drawn with the same noise; a draft token
  is accepted iff it equals the target's (Daliri, Musco, Suresh, arXiv 2408.07978).
- token verification by rejection (Leviathan et al. 2211.17192, Chen et al. 2302.01318).
- block verification, by rejection of whole prefixes (Sun et al. 2403.10444, Algorithm 2).
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


def accept_block(
    drafts: Tensor, lengths: Tensor, p: Tensor, q: Tensor, u: Tensor
) -> tuple[Tensor, Tensor]:
    """Accepted draft tokens per sequence by the joint law of the block, and that prefix's weight.

    Sun et al., "Block Verification Accelerates Speculative Decoding" (arXiv 2403.10444),
    Algorithm 2. The weight of the empty prefix is 1, that of the first i tokens is
    w_i = min(1, w_(i-1) p_i(x_i) / q_i(x_i)). With S_i = sum_x (w_i p_(i+1)(x) - q_(i+1)(x))+ it
    is kept iff u_i < h_i = S_i / (S_i + 1 - w_i), the whole draft iff u_K < w_K, and the longest
    prefix that is kept counts, whatever became of shorter ones. The token after it has the law
    `residual(w_n p_(n+1), q_(n+1))`, with q = 0 after the whole draft.

    A prefix that was drafted is thus a part of what is accepted with probability w_i: never below
    token verification's product of min(1, p / q), so no fewer tokens are expected of a pass.
    What follows the committed tokens has the target's law given them, so nothing is carried over
    to the next round (the paper's greedy variant, which is not this, changes the next target).
    Noise must not be used again there, however: the tokens and numbers past the accepted prefix
    have decided that it is no longer, other than in token verification.

    Args:
        drafts: [B, K] int64; whether a draft goes on may depend on its own tokens so far alone.
        lengths: [B] int64.
        p: [B, K+1, V] fp32 or fp64, target laws at the draft positions and after the last.
        q: [B, K, V], draft laws.
        u: [B, K] uniform numbers of [0, 1).

    Returns:
        [B] int64 accepted tokens n, and [B] fp64 weights w_n.
    """
    weight = torch.ones(len(drafts), dtype=torch.float64, device=drafts.device)
    accepted, chosen = torch.zeros_like(lengths), weight
    for j in range(drafts.shape[1]):
        x = drafts[:, j, None]
        joint = weight * p[:, j].gather(1, x)[:, 0].double()
        qx = q[:, j].gather(1, x)[:, 0].double()
        # Without a division by 0: a token of target probability 0 has weight 0, whatever q is.
        weight = torch.where(joint < qx, joint / qx, (joint > 0).double())
        bar = weight
        if j + 1 < drafts.shape[1]:
            rest = weight[:, None].to(p.dtype) * p[:, j + 1] - q[:, j + 1]
            left = rest.clamp_min(0).sum(dim=-1, dtype=torch.float64)
            missing = left + (1 - weight)
            # Nothing left and nothing missing: the next token is accepted anyway.
            inner = torch.where(missing == 0, 1.0, left / missing)
            bar = torch.where(lengths == j + 1, weight, inner)
        kept = (u[:, j] < bar) & (j < lengths)
        accepted = torch.where(kept, j + 1, accepted)
        chosen = torch.where(kept, weight, chosen)
    return accepted, chosen


def residual(p: Tensor, q: Tensor) -> Tensor:
    """The law [B, V] of the recovered token: (p - q)+ normalised, or p where nothing is left.

    Nothing is left only where p = q up to rounding, and then no draft token is rejected but by
    rounding. For the bonus token after full acceptance pass q = 0: the law is p. Block
    verification passes p with its prefix's weight.
    """
    rest = (p - q).clamp_min(0)
    total = rest.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, rest / total.where(total > 0, torch.ones_like(total)), p)


def _prefix(match: Tensor, lengths: Tensor) -> Tensor:
    columns = torch.arange(match.shape[1], device=match.device)
    return (match & (columns < lengths[:, None])).long().cumprod(dim=1).sum(dim=1)
