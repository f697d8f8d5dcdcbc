"""How well layers can be left out, told from completions that are known: nothing is decoded.

Shapes: L layers, B sequences, T tokens of a pass, R rows of the arena that a pass writes.

A draft begins behind a verified token and sees the target's keys and values of all before it. As
long as its tokens are accepted they are the completion's, so being given the completion's tokens
it says what it would have drafted, up to its first refused one. That makes one pass of a few
tokens out of each draft, and no verification at all. What is approximate: drafts begin every
`draft_tokens`, not behind the last accepted token; the exit's threshold stays where it begins; and
where a draft goes on behind a refused token, its confidence is that behind the right one.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from admg.batch import RaggedBatch
from admg.drafters.self_draft import members_of
from admg.kv_arena import SLOT_GRAIN, Extent, KVArena
from admg.model import Transformer
from admg.noise import stream
from admg.plan import DraftPlan
from admg.request import Request
from admg.sampling import LawRow, Sampler, confidence

# Tokens of a pass that fills the cache.
_CHUNK = 512


@dataclass(frozen=True, slots=True)
class Taught:
    """Drafts of one sequence, or of several: their number, their tokens, those accepted."""

    drafts: int = 0
    drafted: int = 0
    accepted: int = 0

    @property
    def tokens_per_pass(self) -> float:
        """Mean acceptance length: each draft's accepted tokens, and the target's own."""
        return 1 + self.accepted / self.drafts if self.drafts else 1.0

    @property
    def draft_tokens(self) -> float:
        """Mean length of the drafts."""
        return self.drafted / self.drafts if self.drafts else 0.0

    def __add__(self, other: Taught) -> Taught:
        return Taught(
            self.drafts + other.drafts,
            self.drafted + other.drafted,
            self.accepted + other.accepted,
        )


@dataclass(slots=True)
class _Round:
    """One pass: drafts of some sequences, the law of every token, and what the cache holds."""

    owners: list[int]
    parts: list[tuple[list[int], int, Extent]]
    laws: list[LawRow]
    targets: Tensor  # [T] int64: the completions' tokens
    rows: Tensor  # [R] int64
    kept: tuple[Tensor, Tensor]  # [L, R, d] verified keys and values


class Teacher:
    """Completions with their caches, on which sets of layers are tried.

    Args:
        model: the target.
        requests: prompts and laws.
        completions: token ids that the target gives to each request, plainly.
        draft_tokens: length of the drafts.
        exit_threshold: confidence below which a draft ends; None: they never do.
        stops: tokens that `min_tokens` of a request forbid.

    Raises:
        ValueError: no completion has a token to draft.
    """

    def __init__(
        self,
        model: Transformer,
        requests: Seq[Request],
        completions: Seq[Seq[int]],
        *,
        draft_tokens: int,
        exit_threshold: float | None = None,
        stops: Seq[int] = (),
    ) -> None:
        self._model, self._exit = model, exit_threshold
        self._sampler = Sampler(model.config.vocab_size, model.device)
        self.size = len(requests)
        tokens = [[*r.prompt_token_ids, *c] for r, c in zip(requests, completions, strict=True)]
        slots = sum(-(-len(t) // SLOT_GRAIN) * SLOT_GRAIN for t in tokens)
        self._arena = KVArena(model.config, slots, model.dtype, model.device)
        # Not `allocate`: it may stretch extents, and these fill the arena to its end.
        extents: list[Extent] = []
        for t in tokens:
            start = extents[-1].end if extents else 0
            extents.append(Extent(start, -(-len(t) // SLOT_GRAIN) * SLOT_GRAIN))
        for t, extent in zip(tokens, extents, strict=True):
            for first in range(0, len(t), _CHUNK):
                part = [(t[first : first + _CHUNK], first, extent)]
                model.forward(RaggedBatch.build(part, model.device), self._arena)
        longest = max((len(c) for c in completions), default=0)
        self._rounds = [
            self._round(requests, tokens, extents, first, draft_tokens, tuple(stops))
            for first in range(0, longest - 1, draft_tokens)
        ]
        if not self._rounds:
            raise ValueError("no completion is longer than one token: there is nothing to draft")

    def judge(self, plan: DraftPlan) -> list[Taught]:
        """What drafts by this plan come to, per request.

        The plan's own draft length does not matter, nor do limited KV heads.
        """
        found = [Taught()] * self.size
        for r in self._rounds:
            batch = RaggedBatch.build(r.parts, self._model.device)
            members = members_of(batch, [plan] * len(r.parts), self._model.config.num_layers)
            logits = self._model.logits(self._model.forward(batch, self._arena, members=members))
            for store, kept in zip((self._arena.keys, self._arena.values), r.kept, strict=True):
                store.index_copy_(1, r.rows, kept)
            drawn = self._sampler.draw(logits, r.laws)
            right = (drawn == r.targets).tolist()
            sure = [True] * len(right)
            if self._exit is not None:
                sure = (confidence(logits, drawn) >= self._exit).tolist()
            for owner, segment in zip(r.owners, batch.segments, strict=True):
                span = slice(segment.first, segment.first + segment.count)
                found[owner] += _draft(right[span], sure[span])
        return found

    def _round(
        self,
        requests: Seq[Request],
        tokens: Seq[list[int]],
        extents: Seq[Extent],
        first: int,
        draft_tokens: int,
        stops: tuple[int, ...],
    ) -> _Round:
        """The drafts that begin behind completion token `first` of all sequences."""
        owners: list[int] = []
        parts: list[tuple[list[int], int, Extent]] = []
        laws: list[LawRow] = []
        targets: list[int] = []
        for i, (request, whole) in enumerate(zip(requests, tokens, strict=True)):
            at = len(request.prompt_token_ids) + first
            count = min(draft_tokens, len(whole) - 1 - at)
            if count <= 0:
                continue
            owners.append(i)
            parts.append((whole[at : at + count], at, extents[i]))
            targets.extend(whole[at + 1 : at + 1 + count])
            laws.extend(_law(request, whole, first + 1 + j, stops) for j in range(count))
        rows = RaggedBatch.build(parts, self._model.device).arena_rows(self._arena.num_kv_heads)
        kept = (self._arena.keys[:, rows], self._arena.values[:, rows])
        device = self._model.device
        return _Round(owners, parts, laws, torch.tensor(targets, device=device), rows, kept)


def _law(request: Request, whole: list[int], position: int, stops: tuple[int, ...]) -> LawRow:
    sampling = request.sampling
    seen = len(request.prompt_token_ids) + position
    return LawRow(
        sampling,
        stream(sampling.seed, request.key),
        position,
        banned=stops if position < sampling.min_tokens else (),
        seen=lambda: whole[:seen],
    )


def _draft(right: list[bool], sure: list[bool]) -> Taught:
    """One draft, by which of its tokens are the target's and which the draft is sure of."""
    drafted = next((i + 1 for i, s in enumerate(sure) if not s), len(sure))
    accepted = next((i for i, r in enumerate(right) if not r), len(right))
    return Taught(1, drafted, min(accepted, drafted))
