"""Reports: what an output holds, for people (a table, a page) and for programs (JSON).

Read from the committed files alone, so they work on a finished output, on one in the making and on
one whose run died. `read` sums up; `terminal` and `page` show one output, `compare` two.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs.report.read import Report, read_output, rows_committed
    from jobs.report.terminal import print_summary

__all__ = ["Report", "print_summary", "read_output", "rows_committed"]


def __getattr__(name: str) -> Any:
    """When it is asked for: reading outputs needs Ray, drawing and rendering do not."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from jobs.report import read, terminal

    return getattr(terminal if name == "print_summary" else read, name)
