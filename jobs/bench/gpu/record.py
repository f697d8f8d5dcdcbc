"""What a run leaves for machines: the last line of its output, and a record file."""

from __future__ import annotations

from typing import Any

from jobs.bench.gpu.goals import goals
from jobs.bench.gpu.harness import Found
from jobs.bench.gpu.sheets import (
    costs_of,
    data_sheet,
    measured_device,
    prefill_tflops,
    roofline_share,
)
from jobs.bench.gpu.text import figures
from jobs.bench.gpu.worth import Timed, draft_seconds, tokens_per_second

_DIGITS = 5


def document(found: Found) -> dict[str, Any]:
    """The run in one object."""
    text = found.text
    return _rounded(
        {
            "machine": found.machine,
            "versions": found.versions,
            "commit": found.commit,
            "shape": found.grid.shape,
            "weights": "random, made up for the costs",
            "tiny": found.settings.tiny,
            "seconds": found.seconds,
            "interrupted": found.interrupted,
            "complete": found.complete,
            "models": found.costs.models,
            "costs": [_cost(found, t) for t in found.costs.timed],
            "by_cost": [c.to_dict() for c in costs_of(found)],
            "text": {
                "model": text.model,
                "made_seconds": text.made_seconds,
                "layers": text.layers,  # those of the small model that was widened
                "cells": figures(text),
            },
            "goals": [goal.to_dict() for goal in goals(found)],
            "left_out": found.costs.left_out | text.left_out,
        }
    )


def record(found: Found, command: str) -> dict[str, Any]:
    """The same with the command and the date."""
    return {"command": command, "date": found.started, **document(found)}


def _cost(found: Found, timed: Timed) -> dict[str, Any]:
    more: dict[str, Any] = {}
    if timed.cell.part == "decode":
        more["tokens_per_second"] = tokens_per_second(timed)
        more["roofline_share"] = roofline_share(found, timed, data_sheet(found))
        more["roofline_share_measured"] = roofline_share(found, timed, measured_device(found))
    if timed.cell.part == "draft":
        more["draft_seconds"] = draft_seconds(found.costs.timed, timed)
    if timed.cell.part == "prefill":
        more["tokens_per_second"] = tokens_per_second(timed)
        more["tflops"] = prefill_tflops(found, timed)
    return timed.to_dict() | more


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v) for v in value]
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
