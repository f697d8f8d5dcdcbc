"""One verification round: the full model over every draft, in one pass, and who keeps what.

Shapes: B sequences, K longest draft, T = sum of (draft + 1) tokens of the pass, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from admg.batch import RaggedBatch
from admg.config import DraftConfig
from admg.drafters.draft import Draft
from admg.kv_arena import KVArena
from admg.learning import VerifiedObservers
from admg.model import Transformer
from admg.noise import ACCEPT, RESIDUAL, position_key, uniform
from admg.sampling import LawRow, Sampler, finite_rows
from admg.sequence import Sequence
from admg.verify import accept_block, accept_shared, accept_token, residual


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one sequence: accepted draft tokens, and the token that follows them.

    That one is the recovered token after a rejection and the bonus token after full acceptance.
    None where the model's output was not finite at any of the sequence's tokens (a draft token
    that is not finite spoils them all: masks do not stop NaN).
    """

    accepted: list[int]
    following: int | None

    @property
    def tokens(self) -> list[int] | None:
        """What is to be committed."""
        return None if self.following is None else [*self.accepted, self.following]


def verify(
    model: Transformer,
    arena: KVArena,
    sampler: Sampler,
    sequences: list[Sequence],
    draft: Draft,
    config: DraftConfig,
) -> list[Verdict]:
    """Verify the drafts of a round; overwrites their slots in every layer.

    The sequences learn from what is verified then (see `learning`).
    """
    parts = [
        ([s.tokens[-1], *d], len(s.tokens) - 1, s.extent)
        for s, d in zip(sequences, draft.tokens, strict=True)
    ]
    batch = RaggedBatch.build(parts, model.device)
    observers = VerifiedObservers(sequences, config, batch, arena)
    hidden = model.forward(batch, arena, observers=observers.all, heads=observers.heads)
    rows = [
        s.law_row(tuple(d[:j]))
        for s, d in zip(sequences, draft.tokens, strict=True)
        for j in range(len(d) + 1)
    ]
    logits = model.logits(hidden)
    counts = [len(d) + 1 for d in draft.tokens]
    if config.by_rejection:
        by_block = config.verification == "block"
        accepted, following = _by_rejection(sampler, logits, rows, counts, draft, by_block)
    else:
        accepted, following = _by_shared_noise(sampler, logits, rows, counts, draft)
    finite = [bool(good.all()) for good in torch.split(finite_rows(logits), counts)]
    verified = [n + 1 if good else 0 for n, good in zip(accepted, finite, strict=True)]
    observers.teach([segment.first for segment in batch.segments], verified)
    return [
        Verdict(d[:n], y if good else None)
        for d, n, y, good in zip(draft.tokens, accepted, following, finite, strict=True)
    ]


def _by_shared_noise(
    sampler: Sampler, logits: Tensor, rows: list[LawRow], counts: list[int], draft: Draft
) -> tuple[list[int], list[int]]:
    targets = _by_sequence(sampler.draw(logits, rows), counts)  # [B, K+1]
    drafts, lengths = _padded(draft, logits.device)
    accepted = accept_shared(drafts, lengths, targets)
    following = targets.gather(1, accepted[:, None])[:, 0]
    return accepted.tolist(), following.tolist()


def _by_rejection(
    sampler: Sampler,
    logits: Tensor,
    rows: list[LawRow],
    counts: list[int],
    draft: Draft,
    by_block: bool,
) -> tuple[list[int], list[int]]:
    p = _by_sequence(sampler.laws(logits, rows), counts)  # [B, K+1, V]
    drafts, lengths = _padded(draft, logits.device)
    q = torch.zeros_like(p)
    for i, laws in enumerate(draft.laws):
        for j, law in enumerate(laws):
            if law is None:
                q[i, j, draft.tokens[i][j]] = 1.0
            else:
                q[i, j] = law
    longest = drafts.shape[1]
    u = torch.zeros(drafts.shape, dtype=torch.float64)
    starts = [sum(counts[:i]) for i in range(len(counts))]
    for i, d in enumerate(draft.tokens):
        keys = [_accept_key(rows[starts[i] + j]) for j in range(len(d))]
        u[i, : len(d)] = uniform(keys)
    u = u.to(p.device)
    if by_block:
        accepted, weights = accept_block(drafts, lengths, p, q[:, :longest], u)
    else:
        accepted = accept_token(drafts, lengths, p[:, :longest], q[:, :longest], u)
        weights = torch.ones_like(accepted)
    where = accepted[:, None, None].expand(-1, 1, p.shape[-1])
    # Past a sequence's own draft q is 0, so the bonus token's law is p itself.
    target = p.gather(1, where)[:, 0] * weights[:, None].to(p.dtype)
    law = residual(target, q.gather(1, where)[:, 0])
    decisive = [rows[start + n] for start, n in zip(starts, accepted.tolist(), strict=True)]
    return accepted.tolist(), sampler.draw_from(law, decisive, RESIDUAL).tolist()


def _accept_key(row: LawRow) -> int:
    return position_key(row.base, row.position, ACCEPT, row.salt)


def _by_sequence(flat: Tensor, counts: list[int]) -> Tensor:
    return pad_sequence(list(torch.split(flat, counts)), batch_first=True)


def _padded(draft: Draft, device: torch.device) -> tuple[Tensor, Tensor]:
    tensors = [torch.tensor(d, dtype=torch.int64) for d in draft.tokens]
    lengths = torch.tensor([len(d) for d in draft.tokens], device=device)
    return pad_sequence(tensors, batch_first=True).to(device), lengths
