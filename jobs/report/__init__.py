"""Reports: what an output holds, for people (a table, a page) and for programs (JSON).

Read from the committed files alone, so they work on a finished output, on one in the making and on
one whose run died. `read` sums up; `terminal` and `page` show one output, `compare` two.
"""

from jobs.report.read import Report, read_output, rows_committed
from jobs.report.terminal import print_summary

__all__ = ["Report", "print_summary", "read_output", "rows_committed"]
