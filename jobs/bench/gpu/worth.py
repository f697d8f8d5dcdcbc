"""What measured passes are worth: shares of the roofline, and speedups by cost; pure functions.

A round of k drafts and their verification is timed as a whole, and so is one whose drafts are
looked up and cost nothing; the difference is what k draft passes take, with all that the engine
learns for them on the way.

By cost: a round of k draft passes and one verification is set against plain steps, with an assumed
acceptance a per draft token, independent of the others: it commits (1 - a^(k+1)) / (1 - a) tokens
(Leviathan et al., 2211.17192, section 3). So much is modelled; the passes' times are measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jobs.bench.gpu.cells import Cell

ACCEPTANCE = 0.9
LONGEST_DRAFT = 8


@dataclass(frozen=True, slots=True)
class Timed:
    """A cell with what its worker answered."""

    cell: Cell
    answer: Mapping[str, Any]

    @property
    def batch(self) -> int:
        """Sequences: of a cell with full memory as many as there were."""
        return int(self.answer["batch"])

    def to_dict(self) -> dict[str, Any]:
        """For the record: the cell's fields, then the figures."""
        return self.cell.to_dict() | dict(self.answer)


@dataclass(frozen=True, slots=True)
class ByCost:
    """A speedup of decoding that is half measured: see the top of this file."""

    batch: int
    context: int
    weights: str
    dropped: int
    share: float
    draft_tokens: int
    draft_cost: float  # of a plain step
    speedup: float
    acceptance: float = ACCEPTANCE

    def to_dict(self) -> dict[str, Any]:
        """The values by name, and what they are."""
        return asdict(self) | {"how": f"by cost, acceptance {self.acceptance:g} assumed"}


def tokens_per_second(timed: Timed) -> float:
    """Of plain decoding; of a prefill its prompt tokens."""
    tokens = timed.batch * (timed.cell.context if timed.cell.part == "prefill" else 1)
    return float(tokens / timed.answer["round_seconds"])


def by_cost(found: Iterable[Timed], acceptance: float = ACCEPTANCE) -> list[ByCost]:
    """The best draft length and its speedup for every draft whose surroundings were measured."""
    found = list(found)
    plain = {(t.batch, t.cell.context): t for t in found if t.cell.part == "decode"}
    rows = []
    for timed in found:
        at = (timed.batch, timed.cell.context)
        draft = draft_seconds(found, timed)
        if draft is None:
            continue
        step = float(plain[at].answer["round_seconds"])
        passes = verifications(found, *at, step)
        best = max(
            (speedup(k, draft, seconds_of(passes, k + 1), step, acceptance), k)
            for k in range(1, LONGEST_DRAFT + 1)
        )
        c = timed.cell
        row = (*at, c.weights, c.dropped, c.share, best[1], draft / step, best[0], acceptance)
        rows.append(ByCost(*row))
    return rows


def speedup(k: int, draft: float, verification: float, step: float, acceptance: float) -> float:
    """Of rounds with k draft tokens, relative to plain steps of `step` seconds."""
    tokens = k + 1.0
    if acceptance < 1:
        tokens = (1 - acceptance ** (k + 1)) / (1 - acceptance)
    return tokens * step / (k * draft + verification)


def draft_seconds(found: Iterable[Timed], timed: Timed) -> float | None:
    """Of one draft pass in a round that was timed.

    None where its surroundings were not, or where the round took no longer than its verification
    alone: then the difference is noise, and no cost.
    """
    found, at = list(found), (timed.batch, timed.cell.context)
    plain = [t for t in found if t.cell.part == "decode" and (t.batch, t.cell.context) == at]
    if timed.cell.part != "draft" or not plain:
        return None
    passes = verifications(found, *at, float(plain[0].answer["round_seconds"]))
    if len(passes) < 2:
        return None
    drafts = timed.cell.drafts
    seconds = float(timed.answer["round_seconds"] - seconds_of(passes, drafts + 1)) / drafts
    return seconds if seconds > 0 else None


def verifications(
    found: Iterable[Timed], batch: int, context: int, step: float
) -> list[tuple[int, float]]:
    """(tokens per sequence, seconds) of measured passes, beginning with the plain step."""
    measured = {
        t.cell.drafts + 1: float(t.answer["round_seconds"])
        for t in found
        if t.cell.part == "verify" and (t.batch, t.cell.context) == (batch, context)
    }
    return sorted({1: step, **measured}.items())


def seconds_of(passes: list[tuple[int, float]], tokens: int) -> float:
    """Interpolated between measured passes, extrapolated along the last two."""
    if len(passes) == 1:
        return passes[0][1]
    upper = next((i for i, (n, _) in enumerate(passes) if n >= tokens), len(passes) - 1)
    (x0, y0), (x1, y1) = passes[max(upper, 1) - 1], passes[max(upper, 1)]
    return y0 + (y1 - y0) * (tokens - x0) / (x1 - x0)


def prefill_flops(matmul_parameters: int, attention_width: int, batch: int, tokens: int) -> float:
    """Operations of a prefill of `batch` prompts of `tokens` tokens; attention's causal half."""
    pairs = tokens * (tokens + 1) // 2
    return float(batch * (2 * matmul_parameters * tokens + 4 * attention_width * pairs))
