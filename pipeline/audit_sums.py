"""Sums over audited rows: those alike, those at near-ties, and the speedup beside its estimate."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.progress import ratio

AUDIT_COLUMNS = ("audited", "audit_identical", "audit_near_tie", "audit_speedup")


@dataclass(frozen=True, slots=True)
class AuditSums:
    """Sums over the audited rows of a table; from `timed` on over those with both speedups.

    Of such a row, d are the seconds that its decoding took, e those that plain decoding would have
    taken by its estimated speedup and p those that it took: by its `audit_speedup`.
    """

    rows: int = 0
    identical: int = 0
    near_ties: int = 0
    timed: int = 0
    d: float = 0.0
    e: float = 0.0
    p: float = 0.0
    dd: float = 0.0
    dp: float = 0.0
    pp: float = 0.0

    @classmethod
    def of(cls, table: pa.Table) -> AuditSums:
        """The sums of a table that has the columns of the audit and of the speedup."""
        rows = table.filter(pc.fill_null(table["audited"], False))
        if not rows.num_rows:
            return cls()
        same, tied = (
            pc.sum(pc.fill_null(rows[name], False)).as_py()
            for name in ("audit_identical", "audit_near_tie")
        )
        both = pc.and_(pc.is_valid(rows["audit_speedup"]), pc.is_valid(rows["speedup"]))
        timed = rows.filter(both)
        d = timed["decode_seconds"].to_numpy()
        e, p = d * timed["speedup"].to_numpy(), d * timed["audit_speedup"].to_numpy()
        sums = (float(values.sum()) for values in (d, e, p, d * d, d * p, p * p))
        return cls(rows.num_rows, same, tied, timed.num_rows, *sums)

    def __add__(self, other: AuditSums) -> AuditSums:
        names = [f.name for f in fields(AuditSums)]
        return AuditSums(*(getattr(self, n) + getattr(other, n) for n in names))

    @property
    def estimated_speedup(self) -> float | None:
        """Of the audited rows, as their `speedup` columns have it."""
        return ratio(self.e, self.d)

    @property
    def true_speedup(self) -> float | None:
        """Of the same rows, as measured."""
        return ratio(self.p, self.d)

    @property
    def standard_error(self) -> float | None:
        """Of the true speedup, as that of a ratio of sums over rows; None for a single row.

        Rows of a group share their rounds, so few groups make it look smaller than it is.
        """
        if self.timed < 2 or not self.d:
            return None
        true = self.p / self.d
        squares = max(0.0, self.pp - 2 * true * self.dp + true * true * self.dd)
        return math.sqrt(squares * self.timed / (self.timed - 1)) / self.d

    def to_dict(self) -> dict[str, int | float | None]:
        """The numbers that people and programs are shown."""
        return {
            "rows": self.rows,
            "identical": self.identical,
            "near_ties": self.near_ties,
            "estimated_speedup": self.estimated_speedup,
            "true_speedup": self.true_speedup,
            "true_speedup_standard_error": self.standard_error,
        }
