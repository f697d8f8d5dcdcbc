"""What a run prints for people: tables, notes, and a table for documents."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from jobs.bench.measure import median_of, ratios
from jobs.bench.runner import Report
from jobs.bench.show import cells, plain_achieved
from jobs.bench.systems import PLAIN
from jobs.explained import explanation_table
from jobs.terminal import numbers_table

if TYPE_CHECKING:
    from rich.table import Table


def notes(report: Report) -> list[str]:
    """What the numbers are, in sentences."""
    plan = report.plan
    lines = [
        f"{plan.settings.max_tokens} new tokens for every sequence, EOS ignored in all systems; "
        f"{plan.dtype}, {plan.settings.threads} threads, {report.machine.get('device', 'cpu')}.",
        "Ratios are tokens/s end to end relative to plain decoding of the same repeat: "
        f"median (lowest to highest) of {plan.settings.repeats} interleaved repeats.",
    ]
    for name, prompts in plan.prompts.items():
        lengths = [len(p) for p in prompts]
        lines.append(
            f"{name}: {len(lengths)} prompts of {min(lengths)} to {max(lengths)} tokens, "
            f"{sum(lengths) / len(lengths):.0f} on average."
        )
    if any(s.kind == "transformers" for s in plan.settings.systems):
        lines.append(
            "transformers: left-padded batches in the order of the prompts (order=length: longest "
            "first)."
        )
    if any(s.kind in ("transformers-continuous", "vllm") for s in plan.settings.systems):
        lines.append("transformers-continuous, vllm: prefill is a run of its own, one token each.")
    return lines + [f"left out: {reason}" for reason in report.failed.values()]


def _number(value: float | None, form: str = ".1f") -> str:
    return "-" if value is None else format(value, form)


def _gib(count: float | None) -> float | None:
    return None if count is None else count / 2**30


def _where(workload: str, batch: int, temperature: float) -> str:
    law = "greedy" if temperature == 0 else f"temperature {temperature:g}"
    return f"{workload}, batch {batch}, {law}"


def results_table(report: Report) -> Table:
    """Tokens per second and ratios: a line for each system under the cell's own."""
    columns = ("prefill", "decode", "end to end", "per pass", "ratio", "low-high", "GiB")
    title = "Tokens/s, tokens per target pass, ratio of end to end to plain, peak memory so far"
    table = numbers_table(title, "system", columns)
    last = None
    for e in cells(report):
        where = _where(e["workload"], e["batch"], e["temperature"])
        if where != last:
            if last is not None:
                table.add_section()
            table.add_row(where, style="bold")
            last = where
        table.add_row(
            f" {e['system']}",
            _number(e["prefill_tokens_per_second"]),
            _number(e["decode_tokens_per_second"]),
            _number(e["tokens_per_second"]),
            _number(e["mean_acceptance_length"], ".2f"),
            f"{e['ratio_to_plain']:.2f}",
            "" if e["system"] == PLAIN else f"{e['ratio_low']:.2f}-{e['ratio_high']:.2f}",
            _number(_gib(e["peak_resident_bytes"]), ".2f"),
        )
    return table


def peaks_table(report: Report) -> Table:
    """What plain decoding reached beside what the machine can do."""
    gbs, gflops = report.machine["peak_gbs"], report.machine["peak_gflops"]
    title = f"Plain decoding beside the peaks: {gbs:.1f} GB/s, {gflops:.0f} GFLOP/s"
    table = numbers_table(title, "", ("decode GB/s", "decode GFLOP/s", "prefill GFLOP/s"))
    for cell, reached in plain_achieved(report):
        table.add_row(
            _where(cell.workload, cell.batch, cell.temperature),
            _share(reached.decode_gbs, gbs),
            _share(reached.decode_gflops, gflops),
            _share(reached.prefill_gflops, gflops),
        )
    return table


def time_table(report: Report) -> Table:
    """Where the time of our own systems goes."""
    table = numbers_table("Shares of the time", "", ("prefill", "draft", "verify", "elsewhere"))
    for e in cells(report):
        if "time" in e:
            where = _where(e["workload"], e["batch"], e["temperature"])
            table.add_row(f"{e['system']}: {where}", *(f"{s:.0%}" for s in e["time"].values()))
    return table


def explanations(report: Report) -> list[Table]:
    """What each controller went by: costs of passes, acceptance, and the choices of all rounds."""
    tables = []
    for (cell, name), outcomes in report.outcomes.items():
        found = outcomes[-1].explanation
        if found is not None:
            where = _where(cell.workload, cell.batch, cell.temperature)
            tables.append(explanation_table(f"{name}: {where}", found))
    return tables


def _share(value: float | None, peak: float) -> str:
    return "-" if value is None else f"{value:.1f} ({value / peak:.0%})"


def drops_markdown(report: Report) -> str:
    """Dropped layers against tokens per target pass and wall-clock ratios, as Markdown."""
    blocks = []
    for cell in dict.fromkeys(cell for cell, _ in report.outcomes):
        found = {name: o for (c, name), o in report.outcomes.items() if c == cell}
        peer = found.get("transformers")
        where = _where(cell.workload, cell.batch, cell.temperature)
        lines = [
            f"{where} ({report.plan.settings.max_tokens} new tokens, {report.plan.dtype}):",
            "",
            "| | tokens per target pass | drafts accepted | speed, plain = 1 | transformers = 1 |",
            "|---|---|---|---|---|",
        ]
        for name, outcomes in found.items():
            dropped = median_of(outcomes, lambda o: o.dropped)
            label = name if not name.startswith("admg") else f"{_number(dropped, 'g')} dropped"
            rate = median_of(outcomes, lambda o: o.draft_acceptance_rate)
            columns = (
                label,
                _number(median_of(outcomes, lambda o: o.mean_acceptance_length), ".2f"),
                _number(rate, ".2f"),
                _spread(ratios(outcomes, found[PLAIN])),
                _spread(ratios(outcomes, peer)) if peer else "-",
            )
            lines.append(f"| {' | '.join(columns)} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
