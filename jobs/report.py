"""What an output holds, for people (a table) and for programs (JSON).

Read from the committed files alone, so it works on a finished output, on one in the making and on
one whose run died.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.console import duration, printable
from pipeline.manifest import MANIFEST, SUCCESS, read_manifest
from pipeline.schema import FINISH_REASON, RESERVED, ROW_KEY
from pipeline.storage import Store
from pipeline.summary import COLUMNS, Summary

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

_SAMPLE_CHARS = 900


@dataclass(frozen=True)
class Report:
    """One output in numbers; None where nothing was measured.

    `rows_reused`, `seconds` and `tokens_per_second` are those of the last run that added rows;
    `audit` has the numbers of `pipeline.audit_sums`.
    """

    output: str
    complete: bool
    rows: int
    rows_ok: int
    rows_error: int
    prompt_tokens: int
    completion_tokens: int
    mean_acceptance_length: float | None
    draft_acceptance_rate: float | None
    speedup: float | None
    speedup_end_to_end: float | None
    errors_by_code: dict[str, int]
    finish_reasons: dict[str, int]
    speedup_percentiles: dict[str, float]
    acceptance_percentiles: dict[str, float]
    sample: dict[str, Any] = field(default_factory=dict)
    rows_reused: int | None = None
    seconds: float | None = None
    tokens_per_second: float | None = None
    audit: dict[str, int | float | None] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The values by name, fit for JSON."""
        return asdict(self)


def read_output(output: str) -> Report:
    """Sum up the files of an output.

    Raises:
        ValueError: a folder that holds no results of ours.
    """
    store = Store(output)
    names = store.names(".parquet")
    if not names:
        raise ValueError(f"{output} holds no results: it must be the --output of a run")
    rows = pa.concat_tables([_read(store, name) for name in names])
    summary = Summary.of(rows)
    reasons = Counter(r for r in rows[FINISH_REASON].to_pylist() if r is not None)
    last = read_manifest(output)["run"] if store.exists(MANIFEST) else {}
    return Report(
        output=output,
        complete=store.exists(SUCCESS),
        rows=summary.rows,
        rows_ok=summary.rows - summary.rows_error,
        rows_error=summary.rows_error,
        prompt_tokens=summary.prompt_tokens,
        completion_tokens=summary.completion_tokens,
        **summary.statistics(),
        errors_by_code=summary.errors_by_code,
        finish_reasons=dict(reasons.most_common()),
        speedup_percentiles=_percentiles(rows["speedup"]),
        acceptance_percentiles=_percentiles(rows["mean_acceptance_length"]),
        sample=sample_row(output),
        rows_reused=last.get("rows_reused"),
        tokens_per_second=last.get("tokens_per_second"),
        audit=summary.audit.to_dict(),
    )


def rows_committed(output: str) -> int:
    """How many rows an output holds, by the files' footers alone."""
    store = Store(output)
    count = 0
    for name in store.names(".parquet"):
        with store.filesystem.open_input_file(store.path(name)) as stream:
            count += pq.read_metadata(stream).num_rows
    return count


def _read(store: Store, name: str) -> pa.Table:
    wanted = [*COLUMNS, FINISH_REASON]
    try:
        with store.filesystem.open_input_file(store.path(name)) as stream:
            file = pq.ParquetFile(stream)
            missing = [c for c in wanted if c not in file.schema_arrow.names]
            if missing:
                raise ValueError(
                    f"{store.uri} is not the output of a run: {name} has no column {missing[0]!r}"
                )
            return file.read(wanted).replace_schema_metadata()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{store.uri}: {name} cannot be read: {error}") from error


def _percentiles(column: pa.ChunkedArray) -> dict[str, float]:
    if column.null_count == len(column):
        return {}
    shares = [0.05, 0.5, 0.95]
    values = pc.quantile(column, shares).to_pylist()
    return {f"p{round(100 * s)}": v for s, v in zip(shares, values, strict=True)}


def sample_row(output: str) -> dict[str, Any]:
    """The first row of the first file that has a completion; {} where there is none."""
    store = Store(output)
    for name in store.names(".parquet"):
        with store.filesystem.open_input_file(store.path(name)) as stream:
            for batch in pq.ParquetFile(stream).iter_batches(batch_size=64):
                found = batch.filter(pc.equal(batch["status"], "ok")).slice(0, 1).to_pylist()
                if found and found[0]["completion"]:
                    found[0].pop(ROW_KEY, None)
                    return found[0]
    return {}


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
    yield "audit", f"{audit['rows']} rows decoded again plainly, {audit['identical']} identical"
    if audit["true_speedup"] is not None:
        error = _number(audit["true_speedup_standard_error"])
        estimate = _number(audit["estimated_speedup"])
        true = f"{_number(audit['true_speedup'])} ± {error} decoding, measured on these rows"
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
    lines += _audit_lines(report.audit)
    lines.append(("output", report.output))
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
    from rich.console import Console

    console = console or Console()
    console.print(summary_table(report))
    if report.sample:
        console.print(sample_panel(report.sample))
