"""From logits to laws, and from laws to tokens: one place for draft, target and recovered tokens.

Shapes: N rows, V vocabulary, C candidates that survive top-k / top-p (C = V where neither is on).

The order is that of vLLM and transformers: ban and penalise, temperature, top-k, top-p (on the
law renormalised after top-k), min-p. Everything is fp32, noise and races fp64. A row's law depends
on its own logits and parameters alone, whatever rows stand beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from admg.config import SamplingParams
from admg.noise import TARGET, exponential, position_key, race, token_hash

# Candidates that top-p looks at first; rows that need more mass fall back to the whole vocabulary.
FIRST_CANDIDATES = 1024


@dataclass(frozen=True, slots=True)
class LawRow:
    """What turns one row of logits into a law, and names its noise.

    `position` counts the row's own completion tokens from 0. `banned` tokens have probability 0
    (stops before `min_tokens`). `seen` gives the tokens that the repetition penalty applies to,
    the hypothetical prefix of the draft included; it is called only where the penalty is on.
    """

    sampling: SamplingParams
    base: int
    position: int
    banned: tuple[int, ...] = ()
    seen: Callable[[], Sequence[int]] | None = None
    salt: int = 0


@dataclass(frozen=True, slots=True)
class Candidates:
    """Laws of the rows `index` [n] of a batch: fp32 probabilities [n, C] of `tokens`.

    `tokens` [n, C] int64, or None for all tokens in order.
    """

    index: Tensor
    probabilities: Tensor
    tokens: Tensor | None


class Sampler:
    """Draws tokens by the rows' laws with the rows' own noise."""

    def __init__(self, vocab_size: int, device: torch.device | str = "cpu") -> None:
        self.vocab_size = vocab_size
        self._hashes = token_hash(torch.arange(vocab_size, device=device))

    def draw(self, logits: Tensor, rows: Sequence[LawRow], purpose: int = TARGET) -> Tensor:
        """Tokens [N] int64, one exact draw per row of logits [N, V] fp32."""
        logits = adjust(logits, rows)
        tokens = logits.argmax(dim=-1)
        for law in _laws(logits, rows):
            keys = self._keys(rows, law.index, purpose)
            hashes = self._hashes if law.tokens is None else self._hashes[law.tokens]
            column = race(law.probabilities, exponential(keys, hashes))
            tokens[law.index] = column if law.tokens is None else _at(law.tokens, column)
        return tokens

    def laws(self, logits: Tensor, rows: Sequence[LawRow]) -> Tensor:
        """The rows' laws, dense [N, V] fp32; greedy rows are point masses."""
        logits = adjust(logits, rows)
        dense = torch.zeros_like(logits)
        dense.scatter_(1, logits.argmax(dim=-1, keepdim=True), 1.0)
        for law in _laws(logits, rows):
            if law.tokens is None:
                dense[law.index] = law.probabilities
            else:
                part = torch.zeros_like(dense[law.index])
                dense[law.index] = part.scatter_(1, law.tokens, law.probabilities)
        return dense

    def draw_from(self, laws: Tensor, rows: Sequence[LawRow], purpose: int) -> Tensor:
        """Tokens [N] int64 drawn from dense laws [N, V] with the noise of `purpose`."""
        everyone = torch.arange(len(rows), device=laws.device)
        return race(laws, exponential(self._keys(rows, everyone, purpose), self._hashes))

    def deficits(self, logits: Tensor, rows: Sequence[LawRow], tokens: Tensor) -> Tensor:
        """By how many logits each of `tokens` [N] misses being the one drawn: fp64 [N], from 0.

        Where top-k, top-p or min-p cut a token off, it misses the least likely one that is kept
        too. Of banned tokens it is infinite.
        """
        kept = self.laws(logits, rows) > 0
        temperature = _column([r.sampling.temperature or 1.0 for r in rows], logits)
        scaled = adjust(logits, rows).double() / temperature
        everyone = torch.arange(len(rows), device=logits.device)
        noise = exponential(self._keys(rows, everyone, TARGET), self._hashes)
        greedy = [r.sampling.greedy for r in rows]
        noise[torch.tensor(greedy, device=logits.device)] = 1.0
        raced = scaled - noise.log()  # the winner of p / E, in logarithms
        behind = raced.masked_fill(~kept, -torch.inf).amax(dim=-1) - _at(raced, tokens)
        cut = scaled.masked_fill(~kept, torch.inf).amin(dim=-1) - _at(scaled, tokens)
        return torch.maximum(behind, cut).clamp(min=0) * temperature[:, 0]

    def _keys(self, rows: Sequence[LawRow], index: Tensor, purpose: int) -> Tensor:
        chosen = (rows[i] for i in index.tolist())
        keys = [position_key(r.base, r.position, purpose, r.salt) for r in chosen]
        return torch.tensor(keys, dtype=torch.int64, device=self._hashes.device)


def adjust(logits: Tensor, rows: Sequence[LawRow]) -> Tensor:
    """Logits [N, V] with bans and repetition penalties applied; the same tensor if there are none.

    The penalty is that of the CTRL paper (arXiv 1909.05858) as vLLM and transformers apply it.
    """
    fresh = False
    for i, row in enumerate(rows):
        penalty = row.sampling.repetition_penalty
        if not row.banned and (penalty == 1 or row.seen is None):
            continue
        logits, fresh = (logits if fresh else logits.clone()), True
        if penalty != 1 and row.seen is not None:
            seen = torch.tensor(sorted(set(row.seen())), dtype=torch.int64, device=logits.device)
            values = logits[i, seen]
            logits[i, seen] = torch.where(values > 0, values / penalty, values * penalty)
        if row.banned:
            logits[i, list(row.banned)] = -torch.inf
    return logits


def finite_rows(logits: Tensor) -> Tensor:
    """Whether each row [N] of the model's logits [N, V] is free of NaN and infinity."""
    return torch.isfinite(logits.sum(dim=-1))


def confidence(logits: Tensor, tokens: Tensor) -> Tensor:
    """Untempered softmax probability [N] of `tokens` [N] under logits [N, V]."""
    return (_at(logits, tokens) - logits.logsumexp(dim=-1)).exp()


def likeliest(logits: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The `size` largest of each row of logits [N, V] fp32, descending, and their tokens.

    Of equals the first tokens come first, so what is cut off does not hang on how it was found.
    """
    vocab = logits.shape[-1]
    # Some more than asked for; where equals may go on behind them, all.
    values, tokens = logits.topk(min(size + size // 4 + 64, vocab), dim=-1)
    if bool((values[:, -1] == values[:, size - 1]).any()):
        values, tokens = logits, torch.arange(vocab, device=logits.device).expand_as(logits)
    # Integers in the order of the numbers, with the token below them; 0.0 + makes one zero of two.
    bits = (values + 0.0).view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    first = ((ordered << 32) | (vocab - tokens)).topk(size, dim=-1).indices
    return values.gather(1, first), tokens.gather(1, first)


def _laws(logits: Tensor, rows: Sequence[LawRow]) -> list[Candidates]:
    """Laws of the rows that are not greedy, grouped by how many candidates they need."""
    # Rows of one group take the same way through the arithmetic, so that no bit of a row's law
    # hangs on its neighbours.
    groups: dict[tuple[int, bool, bool], list[int]] = {}
    vocab = logits.shape[-1]
    for i, row in enumerate(rows):
        s = row.sampling
        if s.greedy:
            continue
        wanted = s.top_k or (FIRST_CANDIDATES if s.top_p < 1 else vocab)
        kind = (min(wanted, vocab), s.top_k != 0, s.top_p < 1)
        groups.setdefault(kind, []).append(i)
    laws = []
    for (size, _, _), members in groups.items():
        laws += _group_laws(logits, rows, members, size)
    return laws


def _group_laws(
    logits: Tensor, rows: Sequence[LawRow], members: list[int], size: int
) -> list[Candidates]:
    index = torch.tensor(members, dtype=torch.int64, device=logits.device)
    params = [rows[i].sampling for i in members]
    scaled = logits[index] / _column([p.temperature for p in params], logits)
    top_p = _column([p.top_p for p in params], logits)
    floor = _column([p.min_p for p in params], logits)
    full = size == logits.shape[-1]
    if full and all(p.top_p == 1 for p in params):
        probabilities = scaled.softmax(dim=-1)
        tokens = None
        keep = probabilities >= floor * probabilities.amax(dim=-1, keepdim=True)
    else:
        values, tokens = likeliest(scaled, size)
        cut = params[0].top_k != 0  # then the law is renormalised over the candidates
        total = (values if cut else scaled).logsumexp(dim=-1, keepdim=True)
        probabilities = (values - total).exp()
        mass = probabilities.cumsum(dim=-1)
        if not full and not cut:
            short = mass[:, -1] < top_p[:, 0]
            if bool(short.any()):
                rest = [m for m, s in zip(members, short.tolist(), strict=True) if not s]
                more = [m for m, s in zip(members, short.tolist(), strict=True) if s]
                laws = _group_laws(logits, rows, more, logits.shape[-1])
                return laws + (_group_laws(logits, rows, rest, size) if rest else [])
        # The smallest set that reaches top_p: a token stays while the mass before it is below.
        # (At top_p 1 rounding would cut the tail off: there nothing is cut.)
        keep = (mass - probabilities < top_p) | (top_p == 1)
        keep &= probabilities >= floor * probabilities[:, :1]
    probabilities = torch.where(keep, probabilities, 0.0)
    return [Candidates(index, probabilities / probabilities.sum(dim=-1, keepdim=True), tokens)]


def _at(values: Tensor, columns: Tensor) -> Tensor:
    return values.gather(1, columns[:, None])[:, 0]


def _column(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None]
