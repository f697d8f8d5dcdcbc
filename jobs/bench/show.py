"""What a run leaves for machines: one JSON line, and a record file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jobs.bench.measure import Achieved, Outcome, achieved, cell_numbers, ratios, time_shares
from jobs.bench.runner import Report
from jobs.bench.settings import Cell
from jobs.bench.systems import PLAIN
from jobs.whole_file import write_whole

_DIGITS = 4


def cells(report: Report) -> list[dict[str, Any]]:
    """One entry per cell and system, as in the JSON line."""
    entries = []
    for (cell, name), outcomes in report.outcomes.items():
        numbers = cell_numbers(outcomes, report.outcomes[cell, PLAIN])
        entries.append(
            {
                "system": name,
                "workload": cell.workload,
                "batch": cell.batch,
                "temperature": cell.temperature,
            }
            | {key: _rounded(value) for key, value in numbers.items()}
            | _shares(outcomes)
        )
    return entries


def _shares(outcomes: list[Outcome]) -> dict[str, Any]:
    shares = time_shares(outcomes)
    return {} if shares is None else {"time": {k: round(v, _DIGITS) for k, v in shares.items()}}


def _choices(outcomes: list[Outcome]) -> dict[str, Any]:
    explanation = outcomes[-1].explanation
    return {} if explanation is None else {"rounds": explanation["rounds"]}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)


def document(report: Report) -> dict[str, Any]:
    """The last line of the output."""
    return {
        "machine": {
            k: _rounded(v) if isinstance(v, float) else v for k, v in report.machine.items()
        },
        "versions": report.versions,
        "commit": report.commit,
        "cells": cells(report),
    }


def record(report: Report, command: str) -> dict[str, Any]:
    """The JSON line, and what makes it a record: command, date, inputs, every single repeat."""
    plan = report.plan
    lengths = {name: [len(p) for p in prompts] for name, prompts in plan.prompts.items()}
    return {
        "command": command,
        "date": report.started,
        **document(report),
        "workloads": {
            name: {
                "prompts": len(n),
                "mean_prompt_tokens": round(sum(n) / len(n), 1),
                "longest_prompt_tokens": max(n),
                "new_tokens": plan.settings.max_tokens,
            }
            for name, n in lengths.items()
        },
        "repeats": [
            {
                "system": name,
                "workload": cell.workload,
                "batch": cell.batch,
                "temperature": cell.temperature,
                "seconds": [_rounded(o.seconds) for o in outcomes],
                "ratios_to_plain": [
                    _rounded(r) for r in ratios(outcomes, report.outcomes[cell, PLAIN])
                ],
            }
            | _choices(outcomes)
            for (cell, name), outcomes in report.outcomes.items()
        ],
        "plain_achieved": [
            {"workload": cell.workload, "batch": cell.batch, "temperature": cell.temperature}
            | {
                name: _rounded(getattr(reached, name))
                for name in ("decode_gbs", "decode_gflops", "prefill_gflops")
            }
            for cell, reached in plain_achieved(report)
        ],
        "failed": report.failed,
    }


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write the file whole or not at all."""
    write_whole(path, json.dumps(content, indent=1) + "\n")


def plain_achieved(report: Report) -> list[tuple[Cell, Achieved]]:
    """What plain decoding reached in each cell."""
    plan = report.plan
    return [
        (
            cell,
            achieved(
                outcomes,
                plan.shape,
                [len(p) for p in plan.prompts[cell.workload]],
                plan.settings.max_tokens,
            ),
        )
        for (cell, name), outcomes in report.outcomes.items()
        if name == PLAIN
    ]
