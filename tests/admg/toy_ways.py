"""Ways to draft and to verify, as parts that classes of `Decoding` are put together from."""

from __future__ import annotations

import torch
from torch import Tensor

from admg import noise, verify
from tests.admg.toy_decoding import Decoding

# A mutant counts as caught only where no right sampler would ever look like it.
CAUGHT = 1e-9


class Shared(Decoding):
    """Shared noise."""


class Rejection(Decoding):
    """Token verification."""

    by_rejection = True
    draft_purpose = noise.DRAFT


class Block(Rejection):
    """Block verification; other than the others it must have new noise in every round."""

    def salt(self) -> int:
        return self.round

    def accept(
        self, drafts: Tensor, lengths: Tensor, p: Tensor, q: Tensor, u: Tensor
    ) -> tuple[Tensor, Tensor]:
        return verify.accept_block(drafts, lengths, p, q, u)


def sure_prefix(sure: Tensor) -> Tensor:
    """Columns before the first that is not sure."""
    return sure.long().cumprod(dim=1).sum(dim=1)


def confident(drafts: Tensor, q: Tensor) -> Tensor:
    """Which drawn tokens the draft gave at least .3."""
    return q.gather(2, drafts[..., None])[..., 0] >= 0.3


class PointMass(Decoding):
    """The most likely token for certain."""

    def draft_law(self, law: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(law.argmax(dim=-1), law.shape[-1]).double()


class ExitAfterKeeping(Decoding):
    """The draft ends with its first token of low probability."""

    def lengths(self, rows: Tensor, drafts: Tensor, q: Tensor) -> Tensor:
        return (sure_prefix(confident(drafts, q)) + 1).clamp(max=self.longest)


class ExitBeforeDrawing(Decoding):
    """The draft ends before a token whose law is flat."""

    def lengths(self, rows: Tensor, drafts: Tensor, q: Tensor) -> Tensor:
        return sure_prefix(q.amax(dim=2) >= 0.5)


class Discards(Decoding):
    """The draft ends before its first drawn token of low probability: wrong by rejection."""

    def lengths(self, rows: Tensor, drafts: Tensor, q: Tensor) -> Tensor:
        return sure_prefix(confident(drafts, q))


class OwnNoise(Decoding):
    """The draft has noise of its own: worse acceptance, the same law."""

    draft_purpose = noise.DRAFT


def named(*parts: type[Decoding]) -> type[Decoding]:
    return type("".join(part.__name__ for part in parts), parts, {})
