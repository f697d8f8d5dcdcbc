"""A report on a terminal: the headline numbers as a table, and one row to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from jobs.console import duration, printable
from jobs.explained import rounds_line
from jobs.report.read import Report
from pipeline.redaction import redacted
from pipeline.schema import RESERVED

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

_SAMPLE_CHARS = 900


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)


def _spread(values: Mapping[str, float]) -> str:
    if not values:
        return ""
    return f"  (rows: {values['p5']:.2f} / {values['p50']:.2f} / {values['p95']:.2f} at p5/50/95)"


def _audit_lines(audit: Mapping[str, int | float | None]) -> Iterator[tuple[str, str]]:
    """Audited rows, and their true speedup beside the one that was estimated."""
    if not audit.get("rows"):
        return
    rows, same, tied = (int(audit.get(n) or 0) for n in ("rows", "identical", "near_ties"))
    found = f"{rows} rows decoded again plainly, {same} identical"
    if tied:
        found += f", {tied} other at near-ties"
    if same + tied < rows:
        found += f", {rows - same - tied} different"
    yield "audit", found
    if audit["true_speedup"] is not None:
        error = _number(audit["true_speedup_standard_error"])
        estimate = _number(audit["estimated_speedup"])
        true = f"{_number(audit['true_speedup'])} ± {error} or more, decoding, on these rows"
        yield "true speedup", f"{true} (estimated: {estimate})"


def summary_table(report: Report) -> Table:
    """The headline numbers as a table for a terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, title="Summary", title_justify="left")
    rows = f"{report.rows_ok} ok, {report.rows_error} error"
    if report.rows_reused:
        rows += f" ({report.rows_reused} from earlier runs)"
    lines = [("rows", rows + ("" if report.complete else ", not complete yet"))]
    if report.rows_not_in_input:
        lines.append(("not in the input", f"{report.rows_not_in_input} rows, which stay"))
    lines += [("error rows", f"{n} {code}") for code, n in report.errors_by_code.items()]
    tokens = f"{report.prompt_tokens} in prompts, {report.completion_tokens} in completions"
    lines.append(("tokens", tokens))
    if report.seconds is not None:
        lines.append(("time", duration(report.seconds)))
    if report.tokens_per_second:
        lines.append(("tokens/s", f"{report.tokens_per_second:.1f} in completions"))
    length = _number(report.mean_acceptance_length) + " tokens per target pass"
    lines.append(("mean acceptance length", length + _spread(report.acceptance_percentiles)))
    lines.append(("draft acceptance rate", _number(report.draft_acceptance_rate)))
    both = f"{_number(report.speedup)} decoding, {_number(report.speedup_end_to_end)} end to end"
    lines.append(("speedup", both + _spread(report.speedup_percentiles)))
    if report.choices:
        lines.append(("rounds by choice", rounds_line(report.choices) + ", last run"))
    if report.order_dependent:
        lines.append(("statistics", "of drafting depend on other rows or on measured time"))
    lines += _audit_lines(report.audit)
    lines.append(("output", redacted(report.output)))
    for name, value in lines:
        table.add_row(Text(name, style="bold"), Text(printable(value), overflow="fold"))
    return table


def sample_panel(row: Mapping[str, Any]) -> RenderableType:
    """One row to read: its columns, its completion, its statistics."""
    from rich.panel import Panel
    from rich.text import Text

    own = {k: v for k, v in row.items() if k not in RESERVED}
    head = "\n".join(f"{name}: {_clip(str(value), 300)}" for name, value in own.items())
    facts = [
        f"{row['completion_tokens']} tokens",
        f"ended by {row['finish_reason']}",
        f"{_number(row['mean_acceptance_length'])} tokens per target pass",
        f"speedup {_number(row['speedup'])}",
        f"{len(row['dropped_attention_layers'] or ())} attention layers dropped in drafts",
    ]
    text = Text(printable(head), style="bold")
    text.append(f"\n\n{printable(_clip(row['completion'].strip(), _SAMPLE_CHARS))}\n", "not bold")
    text.append("\n" + ", ".join(facts), "dim not bold")
    return Panel(text, title="One row", title_align="left")


def _clip(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3].rstrip() + "..."


def print_summary(report: Report, console: Console | None = None) -> None:
    """Print the table and the sample row."""
    from jobs.terminal import terminal

    console = console or terminal()
    console.print(summary_table(report))
    if report.sample:
        console.print(sample_panel(report.sample))
