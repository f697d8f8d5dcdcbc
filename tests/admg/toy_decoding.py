"""A whole decode loop on toy language models, in which tests swap single steps.

All rows of a pass go at their own pace, as sequences of a batch do.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from admg import noise, verify
from tests.admg.chi_square import Fit, fit

ROWS = 200_000
TOKENS = 3
# Rows of a pass: small enough to stay in cache.
PASS = 1 << 12


@lru_cache
def bases() -> np.ndarray:
    """The noise streams of all rows."""
    return np.array([noise.stream(11, f"row {i}") for i in range(ROWS)], dtype=np.uint64)


def position_keys(base: np.ndarray, position: np.ndarray, purpose: int, salt: int = 0) -> Tensor:
    """`noise.position_key` for many rows at once."""
    counter = (position.astype(np.uint64) + np.uint64(salt << 32)) * np.uint64(4)
    counter += np.uint64(purpose + 1)
    z = base + np.uint64(0x9E3779B97F4A7C15) * counter
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy((z ^ (z >> np.uint64(31))).view(np.int64))


class Toy:
    """A target and a draft law after every pair of tokens [V * V, V], zeros here and there."""

    def __init__(self, vocab: int, seed: int) -> None:
        generator = np.random.default_rng([vocab, seed])
        logits = 1.5 * generator.standard_normal((vocab * vocab, vocab))
        near = logits + 0.8 * generator.standard_normal(logits.shape)
        self.vocab = vocab
        self.target, self.draft = (self._law(x, generator) for x in (logits, near))

    @staticmethod
    def _law(logits: np.ndarray, generator: np.random.Generator) -> Tensor:
        weights = np.exp(logits) * (generator.random(logits.shape) > 0.1)
        return torch.from_numpy(weights / weights.sum(axis=1, keepdims=True))

    def joint(self) -> np.ndarray:
        """The law [V, V, V] of the first tokens after the context (0, 0)."""
        p = self.target.numpy().reshape(self.vocab, self.vocab, self.vocab)
        return p[0, 0][:, None, None] * p[0][:, :, None] * p


class CoarseToy(Toy):
    """Laws of which p / q is a multiple of 1/16, so that 16 values of u are exact already."""

    def __init__(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        halves = np.array([8, 4, 2, 1, 1, 0]) / 16
        self.vocab = 6
        self.draft = torch.from_numpy(np.array([generator.permutation(halves) for _ in range(36)]))
        self.target = torch.from_numpy(generator.multinomial(32, np.ones(6) / 6, size=36) / 32)


class Decoding:
    """The loop: draft, verify, commit, until every row has its tokens.

    Drafts have 0 to `longest` tokens, by row and round. Methods are what mutants override.
    """

    by_rejection = False
    draft_purpose = noise.TARGET

    def __init__(self, toy: Toy, longest: int) -> None:
        self.toy, self.longest = toy, longest
        self.hashes = noise.token_hash(torch.arange(toy.vocab))
        self.round = self.rounds = self.recovered = self.bonus = 0

    def run(self, rows: int = ROWS) -> Fit:
        law = self.toy.joint()
        counts = np.zeros(law.size, dtype=np.int64)
        for part in torch.arange(rows).split(PASS):
            first = self.decode(part).numpy()
            cells = np.ravel_multi_index(first.T, law.shape)
            counts += np.bincount(cells, minlength=law.size)
        return fit(counts, law)

    def decode(self, rows: Tensor) -> Tensor:
        """The first tokens [n, TOKENS] of these rows."""
        tokens = torch.zeros(len(rows), 2 + TOKENS + self.longest + 1, dtype=torch.int64)
        count = torch.zeros_like(rows)
        self.round = 0
        while len(active := (count < TOKENS).nonzero()[:, 0]):
            at = count[active]
            past = [tokens[active, at], tokens[active, at + 1]]
            drafts, q, lengths = self.propose(rows[active], at, past)
            accepted, following = self.judge(rows[active], at, past, drafts, q, lengths)
            for j in range(drafts.shape[1]):
                kept = accepted > j
                tokens[active[kept], at[kept] + 2 + j] = drafts[kept, j]
            tokens[active, at + 2 + accepted] = following
            count[active] = at + accepted + 1
            self.round += 1
            self.recovered += int((accepted < lengths).sum())
            self.bonus += int(((accepted == lengths) & (lengths > 0)).sum())
        self.rounds = max(self.rounds, self.round)
        return tokens[:, 2 : 2 + TOKENS]

    def propose(
        self, rows: Tensor, at: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Drafts [n, K], their laws [n, K, V] and their lengths [n]."""
        sequence, laws = list(past), []
        for j in range(self.longest):
            laws.append(self.draft_law(self.toy.draft[self.context(sequence)]))
            keys = self.keys(rows, at, j, self.draft_purpose)
            sequence.append(noise.race(laws[-1], noise.exponential(keys, self.hashes)))
        drafts, q = torch.stack(sequence[2:], dim=1), torch.stack(laws, dim=1)
        return drafts, q, self.lengths(rows, drafts, q)

    def judge(
        self,
        rows: Tensor,
        at: Tensor,
        past: list[Tensor],
        drafts: Tensor,
        q: Tensor,
        lengths: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Accepted draft tokens [n] and the token after them [n]."""
        sequence = [*past, *drafts.unbind(dim=1)]
        contexts = [self.context(sequence[: 2 + j]) for j in range(self.longest + 1)]
        p = self.target_laws(self.toy.target[torch.stack(contexts, dim=1)], lengths)
        everyone = torch.arange(len(rows))
        if not self.by_rejection:
            targets = torch.stack(
                [
                    noise.race(p[:, j], noise.exponential(self.keys(rows, at, j), self.hashes))
                    for j in range(self.longest + 1)
                ],
                dim=1,
            )
            accepted = self.accept_shared(drafts, lengths, targets)
            return accepted, targets[everyone, accepted]
        u = [self.uniform(rows, at, j) for j in range(self.longest)]
        q = self.verified_laws(q)
        accepted, weights = self.accept(drafts, lengths, p, q, torch.stack(u, dim=1))
        q = torch.cat([q, torch.zeros_like(q[:, :1])], dim=1)[everyone, accepted]
        q = q.where((accepted < lengths)[:, None], torch.zeros_like(q))
        law = self.following_law(p[everyone, accepted] * weights[:, None], q)
        keys = self.keys(rows, at, accepted, noise.RESIDUAL)
        return accepted, noise.race(law, noise.exponential(keys, self.hashes))

    def context(self, sequence: list[Tensor]) -> Tensor:
        return sequence[-2] * self.toy.vocab + sequence[-1]

    def keys(
        self, rows: Tensor, at: Tensor, j: int | Tensor, purpose: int = noise.TARGET
    ) -> Tensor:
        return position_keys(bases()[rows.numpy()], (at + j).numpy(), purpose, self.salt())

    def salt(self) -> int:
        return 0

    def lengths(self, rows: Tensor, drafts: Tensor, q: Tensor) -> Tensor:
        return (rows * 7 + self.round * 3) % (self.longest + 1)

    def draft_law(self, law: Tensor) -> Tensor:
        return law

    def verified_laws(self, q: Tensor) -> Tensor:
        return q

    def target_laws(self, p: Tensor, lengths: Tensor) -> Tensor:
        return p

    def accept_shared(self, drafts: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
        return verify.accept_shared(drafts, lengths, targets)

    def uniform(self, rows: Tensor, at: Tensor, j: int) -> Tensor:
        return noise.uniform(self.keys(rows, at, j, noise.ACCEPT).tolist())

    def accept(
        self, drafts: Tensor, lengths: Tensor, p: Tensor, q: Tensor, u: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.accept_token(drafts, lengths, p[:, :-1], q, u), torch.ones(len(p))

    def accept_token(
        self, drafts: Tensor, lengths: Tensor, p: Tensor, q: Tensor, u: Tensor
    ) -> Tensor:
        return verify.accept_token(drafts, lengths, p, q, u)

    def following_law(self, p: Tensor, q: Tensor) -> Tensor:
        return verify.residual(p, q)
