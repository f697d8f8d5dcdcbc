"""What a 13B model on one H200 should reach, and whether it does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from jobs.bench.gpu.harness import Found
from jobs.bench.gpu.sheets import costs_of, data_sheet, roofline_share
from jobs.bench.gpu.text import FULL, figures
from jobs.bench.gpu.worth import ByCost


@dataclass(frozen=True, slots=True)
class Goal:
    """What should be, what was found (None: not measured), and the least that is good."""

    what: str
    least: float
    found: float | None

    @property
    def state(self) -> str:
        """In a word."""
        if self.found is None:
            return "not measured"
        return "met" if self.found >= self.least else "missed"

    def to_dict(self) -> dict[str, Any]:
        """The values by name."""
        return asdict(self) | {"state": self.state}


def goals(found: Found) -> list[Goal]:
    """All of them; those of a tiny run mean nothing, so there are none."""
    if found.settings.tiny:
        return []
    costs = costs_of(found)
    full = [c for c in costs if c.batch >= 32]
    auto = {e["batch"]: e for e in figures(found.text) if e["system"] == "auto"}
    ratios = {b: auto.get(b, {}).get("decode_ratio") for b in FULL.batches}
    lowest = [auto.get(b, {}).get("decode_ratio_low") for b in FULL.batches]
    return [
        Goal("plain decoding, least share of the roofline", 0.75, _least(_shares(found))),
        Goal(
            "24 layers dropped, batch 32, by cost",
            1.4,
            _best(c for c in full if c.dropped == 24 and not c.share and c.weights == "full"),
        ),
        Goal(
            "75 % of the heads windowed with int4 drafts, batch 32, by cost",
            1.8,
            _best(c for c in full if c.share == 0.75 and not c.dropped and c.weights == "int4"),
        ),
        Goal(
            "int4 drafts, batch 1, by cost",
            2.0,
            _best(
                c
                for c in costs
                if c.batch == 1 and c.weights == "int4" and not (c.dropped or c.share)
            ),
        ),
        Goal(
            "auto on the widened model, decoding, batches 1 to 8",
            1.3,
            _least([ratio for batch, ratio in ratios.items() if batch <= 8]),
        ),
        Goal(
            "auto on the widened model, decoding, worst repeat",
            0.97,
            _least(lowest),
        ),
        Goal("whole rounds on the device, batch 1, pass by pass = 1", 1.5, _graphs(found)),
    ]


def _shares(found: Found) -> list[float | None]:
    """Of every cell of plain decoding that was asked for; None where it was not timed."""
    timed = {
        (t.cell.batch, t.cell.context): roofline_share(found, t, data_sheet(found))
        for t in found.costs.timed
        if t.cell.part == "decode"
    }
    return [timed.get(cell) for cell in product(found.grid.batches, found.grid.contexts)]


def _graphs(found: Found) -> float | None:
    seconds = {
        t.cell.part: t.answer["round_seconds"]
        for t in found.costs.timed
        if (t.batch, t.cell.context) == (1, found.grid.context)
    }
    if not {"eager", "decode"} <= seconds.keys():
        return None
    return float(seconds["eager"] / seconds["decode"])


def _least(values: list[float | None]) -> float | None:
    """None where one of them is not known: it might be less."""
    known = [v for v in values if v is not None]
    return min(known) if known and len(known) == len(values) else None


def _best(costs: Iterable[ByCost]) -> float | None:
    return max((c.speedup for c in costs), default=None)
