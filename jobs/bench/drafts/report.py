"""What is printed and recorded of compared drafts: tables with their bars, and one JSON line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jobs.bench.drafts.measure import Numbers
from jobs.bench.drafts.variants import ABOVE_DROPPED, Variant
from jobs.terminal import numbers_table

if TYPE_CHECKING:
    from rich.table import Table

PAIR = ("budgets", "dropped layers")


@dataclass(frozen=True, slots=True)
class Compared:
    """Budgets beside dropped layers that save as much; `ratio` of their tokens per pass."""

    saved: float
    budgets: Numbers
    dropped: Numbers

    @property
    def ratio(self) -> float:
        """Of the tokens per target pass."""
        return self.budgets.tokens_per_pass / self.dropped.tokens_per_pass


@dataclass
class Report:
    """What was decoded, and the numbers so far; `about` says by what, on which machine."""

    about: dict[str, Any]
    rows: list[tuple[Variant, Numbers]] = field(default_factory=list)

    @property
    def compared(self) -> list[Compared]:
        """The budgets that have dropped layers beside them."""
        found = []
        for saved in dict.fromkeys(v.saved for v, _ in self.rows if v.saved is not None):
            pair = {v.group: n for v, n in self.rows if v.saved == saved}
            if set(pair) == set(PAIR):
                found.append(Compared(saved, *(pair[group] for group in PAIR)))
        return found

    def document(self) -> dict[str, Any]:
        """The last line of the output."""
        rows = [
            {"group": v.group, "name": v.name, "temperature": v.temperature}
            | n.to_dict()
            | {"wanted_tokens_per_pass": v.bar}
            for v, n in self.rows
        ]
        compared = [
            {
                "kv_saved": round(c.budgets.kv_saved or 0.0, 4),
                "kv_saved_by_dropped": round(c.dropped.kv_saved or 0.0, 4),
                "ratio": round(c.ratio, 4),
                "wanted_ratio": ABOVE_DROPPED,
            }
            for c in self.compared
        ]
        return self.about | {"drafts": rows, "budgets_beside_dropped_layers": compared}


def drafts_table(rows: Sequence[tuple[Variant, Numbers]]) -> Table:
    """All kinds of drafts, group by group."""
    columns = ("per pass", "±", "wanted", "accepted", "KV saved", "weights saved", "other texts")
    table = numbers_table("Tokens per target pass of drafts", "draft", columns)
    for group in dict.fromkeys(v.group for v, _ in rows):
        table.add_section()
        table.add_row(group, style="bold")
        for v, n in rows:
            if v.group == group:
                table.add_row(
                    f" {v.name}",
                    f"{n.tokens_per_pass:.2f}",
                    f"{n.standard_error:.2f}",
                    _wanted(v.bar, n.tokens_per_pass, ".1f"),
                    f"{n.accepted:.3f}",
                    _percent(n.kv_saved),
                    _percent(n.weights_saved),
                    "" if n.differing is None else str(n.differing),
                )
    return table


def compared_table(report: Report) -> Table:
    """Tokens per target pass at equal bytes of keys and values saved."""
    columns = ("budgets", "saved", "dropped", "saved ", "ratio", "wanted")
    title = "Budgets beside dropped layers, both remade and filled"
    table = numbers_table(title, "aimed at", columns)
    for c in report.compared:
        table.add_row(
            _percent(c.saved),
            f"{c.budgets.tokens_per_pass:.2f}",
            _percent(c.budgets.kv_saved),
            f"{c.dropped.tokens_per_pass:.2f}",
            _percent(c.dropped.kv_saved),
            f"{c.ratio:.2f}",
            _wanted(ABOVE_DROPPED, c.ratio, ".2f"),
        )
    return table


def _wanted(bar: float | None, found: float, form: str) -> str:
    return "" if bar is None else f"{bar:{form}}{'' if found >= bar else ', not reached'}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"
