"""Numbers and tables as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.bench.paper.bootstrap import Estimate

NONE = "-"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    marks = ["---", *["---:"] * (len(head) - 1)]
    lines = [head, marks, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None, form: str = ".2f") -> str:
    """A number, or a dash."""
    return NONE if value is None else format(value, form)


def with_error(found: Estimate | None, form: str = ".2f") -> str:
    """A number and its standard error."""
    return NONE if found is None else f"{found.value:{form}} ± {found.error:{form}}"


def with_interval(found: Estimate | None, form: str = ".2f") -> str:
    """A number and its 95 % interval."""
    if found is None:
        return NONE
    return f"{found.value:{form}} ({found.low:{form}} to {found.high:{form}})"


def signed(found: Estimate | None) -> str:
    """A difference and its 95 % interval."""
    return with_interval(found, "+.2f")


def megabytes(count: float) -> str:
    """Bytes for people."""
    return f"{count / 1e6:.2f}" if count < 1e8 else f"{count / 1e6:.0f}"


def percent(share: float) -> str:
    """A share for people."""
    return f"{100 * share:.0f} %"
