"""A whole round as tensor operations: draft passes, one verification pass, who keeps what.

Shapes: B sequences (a bucket; some of them padding), Q tokens of each in the verification pass, M =
Q - 1 draft tokens, L layers, K KV heads, D hidden size, V vocabulary.

Nothing in here asks the device for a number, so a round can be captured and replayed. What differs
between sequences (plans, lengths, laws, how far each one drafts) is data in `RoundBuffers`; what
decides which operations run is the `RoundKey`.

A sequence's tokens stand at the end of its Q columns, padding before them: the last one then sees
just what it may see, and nothing is read past what has been written.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from admg.batch import Masked, RaggedBatch, SubBatch
from admg.device_means import Teaching, filling
from admg.device_passes import EvenPass, wanted_units
from admg.kv_arena import KVArena
from admg.model import Members, Transformer
from admg.noise import token_hash
from admg.round_buffers import HEAD, Means, RoundBuffers
from admg.row_laws import LawKind
from admg.sampling import confidence, finite_rows
from admg.verify import accept_shared

# In as many parts a unit is read at most.
MOST_PARTS = 8


@dataclass(frozen=True, slots=True, order=True)
class PlanClass:
    """What all plans of a round have in common.

    `dropped` and `dropped_mlps` are left out by every sequence that drafts, so their weights need
    not be read; `masked` where some drop further ones, `limited` where some limit heads, `exits`
    where some end drafts by their confidence. All of that is per sequence, in the buffers.
    """

    dropped: tuple[int, ...] = ()
    dropped_mlps: tuple[int, ...] = ()
    masked: bool = False
    limited: bool = False
    exits: bool = False


@dataclass(frozen=True, slots=True)
class RoundKey:
    """Which operations a round consists of: what a captured round is known by.

    `sequences` is the bucket, `passes` the draft passes of the model itself, `tokens` those of
    each sequence in the verification pass (0: there is none); `learns` where verified tokens teach
    running means. `longest` bounds the slots of its sequences; None: all that an engine's can have.
    """

    sequences: int
    passes: int
    tokens: int
    laws: LawKind
    plans: PlanClass = PlanClass()
    learns: bool = False
    longest: int | None = None

    @property
    def drafts(self) -> int:
        """Columns for draft tokens."""
        return max(self.tokens - 1, self.passes)


class DeviceRound:
    """Plays rounds of one engine on its buffers.

    Args:
        model: the target.
        arena: with spare slots.
        buffers: where rounds find their numbers and leave their result.
        means: of the sequences, by place.
        decay: weight of a token in the means relative to the one after it.
        window: keys that a limited head reads beside the first ones; None where none is limited.
        longest: most slots that a sequence can have.
    """

    def __init__(
        self,
        model: Transformer,
        arena: KVArena,
        buffers: RoundBuffers,
        means: Means,
        *,
        decay: float,
        window: int | None,
        longest: int,
    ) -> None:
        self._model, self._arena = model, arena
        self._buffers, self._means = buffers, means
        self._decay, self._window, self._longest = decay, window, longest
        self._hashes = token_hash(torch.arange(model.config.vocab_size, device=model.device))
        self._group = model.config.num_heads // model.config.num_kv_heads
        self._spread = wanted_units(model.device, model.dtype, model.config.head_dim)

    @torch.inference_mode()
    def play(self, key: RoundKey, drafter: Transformer) -> None:
        """One round: reads the first `key.sequences` rows of the buffers, writes their result."""
        rows = self._buffers.first(key.sequences)
        drafts, count = rows.given[:, : key.drafts].clone(), rows.number("given").clone()
        if key.passes:
            self._draft(rows, key, drafter, drafts, count)
        if not key.tokens:
            return
        targets, finite, teaching = self._verify(rows, key, drafts, count)
        accepted = accept_shared(drafts, count, targets)
        if teaching is not None:
            teaching.teach(torch.where(finite, accepted + 1, 0))
        result = torch.cat([torch.stack([accepted, count, finite], 1), targets, drafts], dim=1)
        rows.result[:, : HEAD + 2 * key.tokens - 1] = result

    def _draft(
        self, rows: RoundBuffers, key: RoundKey, drafter: Transformer, drafts: Tensor, count: Tensor
    ) -> None:
        """Fill `drafts` [B, M] and `count` [B] by `key.passes` passes of the drafting model."""
        limit, last = rows.number("limit"), rows.number("token")
        going = (rows.number("present") > 0) & (limit > 0)
        members = self._members(rows, key.plans)
        fill = filling(self._means, rows, key.plans.limited, drafter.dtype)
        window = self._window if key.plans.limited else None
        laws = rows.laws
        for j in range(key.passes):
            going = going & (j < limit)
            position = rows.number("length") - 1 + j
            one = (last[:, None], position.clamp_min(0)[:, None], going[:, None])
            at = self._pass(rows, key, *one)
            reads = at.draft_reads(self._arena, self._group, window)
            batch = at.batch(self._arena, reads)
            hidden = drafter.forward(batch, self._arena, members=members, fill=fill)
            logits = drafter.logits(hidden)
            ahead = laws.at((laws.position + j)[:, None])
            token = ahead.draw(logits, key.laws, self._hashes)
            drafts[:, j] = torch.where(going, token, drafts[:, j])
            last = torch.where(going, token, last)
            count += going
            # A drafted stop token ends the draft: whatever followed it would be thrown away.
            going = going & ~(token[:, None] == rows.stops).any(dim=1)
            if key.plans.exits:
                sure = confidence(logits, token).double() >= rows.fraction("exit_below")
                going = going & sure

    def _verify(
        self, rows: RoundBuffers, key: RoundKey, drafts: Tensor, count: Tensor
    ) -> tuple[Tensor, Tensor, Teaching | None]:
        """The target's tokens [B, Q], who is finite [B], and what the pass can teach."""
        columns = torch.arange(key.tokens, device=drafts.device)
        shift = (key.tokens - 1 - count)[:, None]
        nth = columns - shift  # [B, Q]: 0 is the last committed token, below it is padding
        real = (nth >= 0) & (rows.number("present") > 0)[:, None]
        nth = nth.clamp_min(0)
        inputs = torch.cat([rows.number("token")[:, None], drafts], dim=1).gather(1, nth)
        positions = (rows.number("length")[:, None] - 1 + nth).clamp_min(0)
        at = self._pass(rows, key, inputs, positions, real)
        reads = at.reads(self._arena, self._group)
        batch = at.batch(self._arena, reads)
        teaching = self._teaching(at, key, batch) if key.learns else None
        observers = () if teaching is None else (teaching,)
        heads = None if teaching is None or not key.plans.limited else teaching
        hidden = self._model.forward(batch, self._arena, observers=observers, heads=heads)
        logits = self._model.logits(hidden)
        laws = rows.laws
        ahead = laws.at(laws.position[:, None] + nth)
        drawn = ahead.draw(logits, key.laws, self._hashes).view_as(nth)
        finite = (finite_rows(logits).view_as(nth) | ~real).all(dim=1)
        return drawn.gather(1, (columns + shift).clamp_max(key.tokens - 1)), finite, teaching

    def _pass(
        self, rows: RoundBuffers, key: RoundKey, tokens: Tensor, positions: Tensor, real: Tensor
    ) -> EvenPass:
        units = len(tokens) * self._arena.num_kv_heads
        parts = min(max(-(-self._spread // units), 1), MOST_PARTS)
        return EvenPass(key.longest or self._longest, rows, tokens, positions, real, parts)

    def _teaching(self, at: EvenPass, key: RoundKey, batch: RaggedBatch) -> Teaching:
        window = self._window if key.plans.limited else None
        return Teaching(self._means, at, self._arena, self._decay, window)

    def _members(self, rows: RoundBuffers, plans: PlanClass) -> Members:
        """Who takes part in each sub-layer of a draft pass."""
        none = rows.given[:0, 0]
        nobody = SubBatch(none, RaggedBatch(none, none, ()))
        limited = rows.limited.any(dim=2) if plans.limited else None  # [L, B]
        attention: list[SubBatch | Masked | None] = []
        mlps: list[SubBatch | Masked | None] = []
        for i in range(len(rows.kept)):
            holes = None if limited is None else limited[i]
            mixed = plans.masked or plans.limited
            attention.append(Masked(rows.kept[i], holes) if mixed else None)
            mlps.append(Masked(rows.kept_mlps[i]) if plans.masked else None)
            if i in plans.dropped:
                attention[i] = nobody
            if i in plans.dropped_mlps:
                mlps[i] = nobody
        return Members(attention, mlps)
