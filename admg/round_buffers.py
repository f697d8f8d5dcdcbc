"""What a round on the device reads and writes: buffers that stay where they are.

Shapes: B most sequences of a round, L layers, K KV heads, D hidden size, S most stop tokens, M most
draft tokens of a round, Q = M + 1 tokens of a sequence in its verification, P places.

A captured round knows addresses, so all that differs from round to round is data at a fixed one.
The host writes a round's numbers into pinned memory and sends them in three copies; the plans'
masks, which change only with the batch, go in three more when they do. One copy brings the result
back. A sequence's running means stay on the device from round to round, at the *place* that is its
own while it runs; the rows of a batch name their places.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from admg.row_laws import NO_TOKEN, RowLaws

MOST_STOPS = 16
# Columns of the result before the tokens.
ACCEPTED, DRAFTED, FINITE, HEAD = 0, 1, 2, 3
# Rows of `whole`: int64 numbers of each sequence, in this order.
_SHAPE = ("present", "token", "length", "start", "capacity", "limit", "given", "place")
_LAW = ("base", "position", "min_tokens", "top_k")
WHOLE = (*_SHAPE, *_LAW)
# Rows of `real`: fp64 numbers.
REAL = ("temperature", "top_p", "min_p", "exit_below", "filling_weight", "left_out_weight")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the buffers are; the names are those of the shapes."""

    sequences: int
    drafts: int
    layers: int
    kv_heads: int


@dataclass(frozen=True, slots=True)
class RoundBuffers:
    """The buffers of rounds of up to B sequences, or views of them for fewer.

    `whole` [len(WHOLE), B] int64, `real` [len(REAL), B] fp64, `stops` [B, S] int64 and `given`
    [B, M] int64 (draft tokens that need no pass) are a round's own numbers. `kept` [L, B] and
    `kept_mlps` [L, B] bool say who takes part in the layers of a draft pass, `limited` [L, B, K]
    bool which heads read a window only. `result` [B, 3 + Q + M] int64 holds, per sequence,
    accepted and drafted tokens, whether its logits were finite, the target's Q tokens and the M
    drafted ones.
    """

    whole: Tensor
    real: Tensor
    stops: Tensor
    given: Tensor
    kept: Tensor
    kept_mlps: Tensor
    limited: Tensor
    result: Tensor

    @classmethod
    def new(cls, sizes: Sizes, device: torch.device | str) -> RoundBuffers:
        """Zeroed buffers: all rows are padding."""
        b, m, layers = sizes.sequences, sizes.drafts, sizes.layers

        def buffer(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls(
            buffer(len(WHOLE), b),
            buffer(len(REAL), b, dtype=torch.float64),
            buffer(b, MOST_STOPS),
            buffer(b, m),
            buffer(layers, b, dtype=torch.bool),
            buffer(layers, b, dtype=torch.bool),
            buffer(layers, b, sizes.kv_heads, dtype=torch.bool),
            buffer(b, HEAD + 2 * m + 1),
        )

    def on_host(self, *, pinned: bool) -> RoundBuffers:
        """Zeroed ones like these in host memory."""
        return RoundBuffers(
            *(
                torch.zeros(t.shape, dtype=t.dtype, pin_memory=pinned)
                for t in (getattr(self, f.name) for f in fields(self))
            )
        )

    def forget(self) -> None:
        """Mark the result as that of no round, so that none is taken for the next one's."""
        self.result[:, ACCEPTED].fill_(-1)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(getattr(self, f.name).nbytes for f in fields(self))

    def first(self, sequences: int) -> RoundBuffers:
        """Views of the first sequences' part."""
        n = sequences
        return RoundBuffers(
            self.whole[:, :n],
            self.real[:, :n],
            self.stops[:n],
            self.given[:n],
            self.kept[:, :n],
            self.kept_mlps[:, :n],
            self.limited[:, :n],
            self.result[:n],
        )

    def send(self, other: RoundBuffers, names: Seq[str]) -> None:
        """Copy these buffers into the same ones of `other`, without waiting."""
        for name in names:
            getattr(other, name).copy_(getattr(self, name), non_blocking=True)

    def number(self, name: str) -> Tensor:
        """One of `WHOLE`, [B] int64."""
        return self.whole[WHOLE.index(name)]

    def fraction(self, name: str) -> Tensor:
        """One of `REAL`, [B] fp64."""
        return self.real[REAL.index(name)]

    @property
    def laws(self) -> RowLaws:
        """The laws of the sequences' next tokens."""
        cut = {name: self.fraction(name).float() for name in ("temperature", "top_p", "min_p")}
        kept = {n: self.number(n) for n in ("base", "position", "top_k", "min_tokens")}
        return RowLaws(stops=self.stops, **cut, **kept)

    def fill(self, name: str, values: Seq[float], rest: int = 0) -> None:
        """Host side: the first rows of one of `WHOLE` or `REAL`; the others become `rest`."""
        row = self.number(name) if name in WHOLE else self.fraction(name)
        row[: len(values)] = torch.tensor(values, dtype=row.dtype)
        row[len(values) :] = rest

    def fill_rows(self, name: str, rows: Seq[Seq[int]]) -> None:
        """Host side: ragged rows of `stops` or `given`; what is not given is `NO_TOKEN` or 0."""
        buffer: Tensor = getattr(self, name)
        buffer.fill_(NO_TOKEN if name == "stops" else 0)
        for i, row in enumerate(rows):
            if row:
                buffer[i, : len(row)] = torch.tensor(row)


@dataclass(frozen=True, slots=True)
class Means:
    """Running means of what attention adds, by place: [P+1, L, D] fp32 sums each, or None.

    The last place is nobody's: rows that learn nothing write there. `filling` is for dropped
    layers, `left_out` for what limits take away.
    """

    filling: Tensor | None
    left_out: Tensor | None

    @classmethod
    def new(
        cls, places: int, layers: int, hidden: int, device: torch.device, *, limits: bool
    ) -> Means:
        """For so many sequences at a time."""
        shape = (places + 1, layers, hidden)
        left_out = torch.zeros(shape, device=device) if limits else None
        return cls(torch.zeros(shape, device=device), left_out)

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return sum(t.nbytes for t in (self.filling, self.left_out) if t is not None)
