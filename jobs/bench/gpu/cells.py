"""What is measured with made-up weights: cells, in the order in which time is spent on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

Part = Literal["decode", "prefill", "draft", "verify", "eager"]

# As many sequences as fit into the memory.
FULL = 0


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement.

    `batch` sequences (`FULL`: as many as fit) of `context` tokens each. `drafts` are the draft
    tokens of a round (0: plain decoding) with `weights`, `dropped` attention layers and a `share`
    of windowed KV heads.
    """

    part: Part
    batch: int
    context: int
    weights: str = "full"
    dropped: int = 0
    share: float = 0.0
    drafts: int = 0

    def __str__(self) -> str:
        size = "full memory" if self.batch == FULL else f"batch {self.batch}"
        words = [self.part, size, f"context {self.context}"]
        if self.part == "draft":
            words += [f"{self.weights} weights", f"{self.dropped} layers dropped"]
            words += [f"{self.share:.0%} of heads windowed"] if self.share else []
        if self.part == "verify":
            words.append(f"{self.drafts + 1} tokens")
        return ", ".join(words)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Grid:
    """The sizes of a run.

    `shape` names the model. `context` and `batch` are those of the drafts' cells, beside batch 1;
    `drafts` are the draft tokens of their rounds. `together` are dropped layers with a share of
    windowed heads.
    """

    shape: str
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    batch: int
    context: int
    dropped: tuple[int, ...]
    shares: tuple[float, ...]
    weights: tuple[str, ...]
    verified: tuple[int, ...]
    together: tuple[int, float]
    drafts: int = 4

    def stages(self) -> Iterator[tuple[str, list[Cell]]]:
        """Cells by the draft weights that they need; the first stage has the most of them."""
        first = [*self._plain(self.context), *self._verify(), *self._drafts("full"), *self._eager()]
        others = [context for context in self.contexts if context != self.context]
        first += [cell for context in others for cell in self._plain(context)]
        first += [Cell("prefill", 1, context) for context in self.contexts]
        yield "full", [*first, *self._more_drafts("full")]
        for weights in self.weights:
            if weights != "full":
                yield weights, [*self._drafts(weights), *self._more_drafts(weights)]

    def _plain(self, context: int) -> list[Cell]:
        return [Cell("decode", batch, context) for batch in self.batches]

    def _drafts(self, weights: str) -> Iterator[Cell]:
        # By share first: the layers alone are known from the full weights.
        for share in self.shares:
            yield Cell("draft", self.batch, self.context, weights, 0, share, self.drafts)
        for batch in (self.batch, 1):
            for dropped in self.dropped:
                if dropped or batch == 1:
                    yield Cell("draft", batch, self.context, weights, dropped, drafts=self.drafts)

    def _more_drafts(self, weights: str) -> Iterator[Cell]:
        """What other cells hint at: measured last, where time is left."""
        for batch in dict.fromkeys((self.batch, 1)):
            dropped, share = self.together
            yield Cell("draft", batch, self.context, weights, dropped, share, self.drafts)
        for share in self.shares:
            if share:
                yield Cell("draft", 1, self.context, weights, 0, share, self.drafts)

    def _eager(self) -> Iterator[Cell]:
        """Plain decoding, pass by pass: without the device's whole rounds."""
        for batch in dict.fromkeys((1, self.batch)):
            yield Cell("eager", batch, self.context)

    def _verify(self) -> Iterator[Cell]:
        for batch in dict.fromkeys((self.batch, 1)):
            for tokens in self.verified:
                yield Cell("verify", batch, self.context, drafts=tokens - 1)


def grid_of(shape: str, tiny: bool) -> Grid:
    """The cells of a full run, or of one that only shows that everything works."""
    if tiny:
        return Grid(
            "tiny",
            batches=(1, 4, FULL),
            contexts=(128, 256),
            batch=4,
            context=128,
            dropped=(0, 2, 4),
            shares=(0.0, 0.5),
            weights=("full", "int4", "fp8"),
            verified=(2, 5),
            together=(2, 0.5),
            drafts=2,
        )
    return Grid(
        shape,
        batches=(32, FULL, 1, 8),
        contexts=(2048, 512, 4096, 1024),
        batch=32,
        context=2048,
        dropped=(0, 24, 8, 16, 20, 30),
        shares=(0.75, 0.0, 0.5, 0.9),
        weights=("full", "int4", "fp8"),
        verified=(2, 3, 5, 9),
        together=(24, 0.75),
    )
