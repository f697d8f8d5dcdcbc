"""One round of verification by exact enumeration: every draft, every outcome, no sampling."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from admg.verify import accept_block, accept_token, residual

FAMILIES = ["random", "equal", "near", "disjoint", "zeros", "one-hot p", "one-hot q", "one-hot"]


def pair(family: str, vocab: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A target law and a draft law [V] in fp64."""
    p, q = generator.dirichlet(np.ones(vocab), size=2)
    half = generator.permutation(vocab) < max(vocab // 2, 1)
    if family == "equal":
        q = p.copy()
    elif family == "near":
        q = p * (1 + 1e-9 * generator.standard_normal(vocab))
    elif family == "disjoint":
        p, q = p * half, q * ~half
    elif family == "zeros":
        p = p * (generator.permutation(vocab) < max(vocab - 2, 1))
        q = q * (generator.permutation(vocab) < max(vocab - 2, 1))
    if family in ("one-hot p", "one-hot"):
        p = np.eye(vocab)[generator.integers(vocab)]
    if family in ("one-hot q", "one-hot"):
        q = np.eye(vocab)[generator.integers(vocab)]
    return p / p.sum(), q / q.sum()


def markov(family: str, vocab: int, seed: int) -> tuple[Tensor, Tensor]:
    """Target and draft laws [V + 1, V] after each token; the last row is that of the start."""
    generator = np.random.default_rng([seed, vocab, len(family)])
    names = FAMILIES if family == "mixed" else [family]
    pairs = [pair(names[i % len(names)], vocab, generator) for i in range(vocab + 1)]
    p, q = (torch.tensor(np.array(laws)) for laws in zip(*pairs, strict=True))
    return p, q


def chain(law: Tensor, length: int) -> Tensor:
    """The joint law [V ** length] of the first tokens of a Markov chain."""
    vocab = law.shape[1]
    joint = law[-1]
    for _ in range(length - 1):
        joint = (joint.view(-1, vocab)[:, :, None] * law[:vocab]).view(-1)
    return joint


class ByToken:
    """Token verification: a draft token is kept by chance min(1, p / q)."""

    # Where in its cell the verdict is asked: in the middle.
    edge = 0.5

    def bars(self, drafts: Tensor, lengths: Tensor, p: Tensor, q: Tensor) -> Tensor:
        """What each u [N, K] has to stay below."""
        split = (p[:, :-1] / q).gather(2, drafts[..., None])[..., 0]
        return split.clamp(max=1).double()

    def judge(
        self, drafts: Tensor, lengths: Tensor, p: Tensor, q: Tensor, u: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Accepted draft tokens [N], and the law [N, V] of the token after them."""
        accepted = accept_token(drafts, lengths, p[:, :-1], q, u)
        return accepted, following(p, q, lengths, accepted, torch.ones_like(accepted))


class ByBlock(ByToken):
    """Block verification, its bars not from the paper's formula but from what they are for.

    A drafted prefix has to be part of what is accepted by chance w: the longer ones see to some
    of that, the bar to the rest.
    """

    # So close to the border that a bar that is slightly off gives another verdict.
    edge = 1e-4

    def bars(self, drafts: Tensor, lengths: Tensor, p: Tensor, q: Tensor) -> Tensor:
        w, bars = torch.ones(len(drafts), dtype=torch.float64), []
        for j in range(drafts.shape[1]):
            px, qx = (law[:, j].gather(1, drafts[:, j, None])[:, 0] for law in (p, q))
            w = (w * px / qx).clamp(max=1)
            bar = w
            if j + 1 < drafts.shape[1]:
                longer = torch.minimum(q[:, j + 1], w[:, None] * p[:, j + 1]).sum(dim=1)
                rest = (q[:, j + 1] - w[:, None] * p[:, j + 1]).clamp(min=0).sum(dim=1)
                inner = torch.where(rest > 0, (w - longer) / rest, 1.0).clamp(0, 1)
                bar = torch.where(lengths == j + 1, w, inner)
            bars.append(bar)
        return torch.stack(bars, dim=1)

    def judge(
        self, drafts: Tensor, lengths: Tensor, p: Tensor, q: Tensor, u: Tensor
    ) -> tuple[Tensor, Tensor]:
        accepted, weights = accept_block(drafts, lengths, p, q, u)
        return accepted, following(p, q, lengths, accepted, weights)


def following(p: Tensor, q: Tensor, lengths: Tensor, accepted: Tensor, weights: Tensor) -> Tensor:
    """The law of the token after the accepted ones."""
    everyone = torch.arange(len(p))
    q = torch.cat([q, torch.zeros_like(q[:, :1])], dim=1)[everyone, accepted]
    q = q * (accepted < lengths)[:, None]
    return residual(p[everyone, accepted] * weights[:, None].to(p.dtype), q)


class Round(NamedTuple):
    """The joint law [V ** (K + 1)] of a round and plain decoding after it; expected acceptance."""

    law: Tensor
    accepted: float


def whole(drafts: Tensor) -> Tensor:
    """Drafts that never end early."""
    return torch.full((len(drafts),), drafts.shape[1])


def until_zero(drafts: Tensor) -> Tensor:
    """Drafts that end with their first token 0."""
    return (1 + (drafts != 0).long().cumprod(dim=1).sum(dim=1)).clamp(max=drafts.shape[1])


def enumerate_round(
    way: ByToken,
    p: Tensor,
    q: Tensor,
    drafted: int,
    lengths_of: Callable[[Tensor], Tensor] = whole,
) -> Round:
    """All that one round can do with drafts of a Markov chain.

    For a draft each u_i is uniform, so [0, 1) splits at its bar into two cells in which the
    verdict cannot change; the verdict is asked inside each and weighs its width.
    """
    vocab = p.shape[1]
    drafts = torch.cartesian_prod(*[torch.arange(vocab)] * drafted).view(-1, drafted)
    weight = chain(q, drafted)
    drafts, weight = drafts[weight > 0], weight[weight > 0]
    lengths = lengths_of(drafts)
    contexts = torch.cat([torch.full((len(drafts), 1), vocab), drafts], dim=1)  # [B, K + 1]
    laws_p, laws_q = p[contexts], q[contexts[:, :-1]]
    bars = way.bars(drafts, lengths, laws_p, laws_q)
    # By the number of accepted tokens: those, and the one after them.
    ends = [torch.zeros(vocab**n, vocab, dtype=torch.float64) for n in range(drafted + 1)]
    for cells in itertools.product([True, False], repeat=drafted):
        low = torch.tensor(cells)
        u = torch.where(low, bars * (1 - way.edge), bars + (1 - bars) * way.edge)
        mass = weight * torch.where(low, bars, 1 - bars).prod(dim=1)
        live = mass > 0
        args = drafts[live], lengths[live], laws_p[live], laws_q[live], u[live]
        accepted, laws = way.judge(*args)
        for n in range(drafted + 1):
            mine = accepted == n
            index = torch.zeros(int(mine.sum()), dtype=torch.int64)
            for token in drafts[live][mine, :n].T:
                index = index * vocab + token
            ends[n].index_add_(0, index, mass[live][mine, None] * laws[mine].double())
    out = torch.zeros(vocab ** (drafted + 1), dtype=torch.float64)
    for n, joint in enumerate(ends):
        for _ in range(drafted - n):  # plain decoding goes on from there
            joint = (joint.view(-1, vocab)[:, :, None] * p[:vocab]).view(-1, vocab)
        out += joint.view(-1)
    return Round(out, float(sum(n * ends[n].sum() for n in range(drafted + 1))))
