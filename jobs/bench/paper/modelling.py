"""What drafts leave out, in bytes, and what that should gain on a device: from rows, by a roofline.

Every row is taken as one of a batch of sequences like it: its draft passes, target passes and plain
passes get the seconds of `jobs.modelled`, so that a speedup is a ratio of sums over rows and has
the same bootstrap as everything else. Weights of a layer are saved only where the whole batch drops
it: for batches, where all rows of the cell do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from admg.windows import SINKS
from jobs.bench.paper.bootstrap import Counts
from jobs.bench.paper.decoding import WINDOW
from jobs.bench.paper.rows import Rows
from jobs.devices import GPUS, HERE, Device
from jobs.modelled import Saving, Shape, model_pass

BATCHES = (1, 32)
NAMED = ("H200", "A100-80G")


@dataclass(frozen=True, slots=True)
class Left:
    """What a draft pass over one sequence leaves out, in bytes of bf16 and in shares."""

    weight_bytes: float
    weight_share: float
    kv_bytes: float
    kv_share: float


def shape_of(about: Mapping[str, Any]) -> Shape:
    """The model of a record."""
    s = about["shape"]
    return Shape(
        s["num_layers"],
        s["hidden_size"],
        s["num_heads"],
        s["num_kv_heads"],
        s["head_dim"],
        s["intermediate_size"],
        s["vocab_size"],
    )


def devices_of(run: Mapping[str, Any]) -> list[Device]:
    """The named GPUs, and the machine of the run where its peaks were measured."""
    found: list[Device] = [GPUS[name] for name in NAMED]
    here = run.get("device")
    if here is not None:
        found.append(Device(HERE, here["peak_gbs"] * 1e9, here["peak_gflops"] * 1e9))
    return found


def left_out(rows: Sequence[Rows], shape: Shape) -> Left:
    """The mean over rows, sets included; rows whose model drafted nothing count."""
    weights, keys, of_keys = [], [], []
    whole = model_pass(shape, GPUS["H200"], batch=1, context=1).weight_bytes
    for part in rows:
        for i in range(len(part)):
            context = part.prompt[i] + part.tokens[i] / 2
            plain = model_pass(shape, GPUS["H200"], batch=1, context=context)
            draft = model_pass(
                shape, GPUS["H200"], batch=1, context=context, saving=_saving(part, i, None)
            )
            weights.append(plain.weight_bytes - draft.weight_bytes)
            keys.append(plain.kv_bytes - draft.kv_bytes)
            of_keys.append(keys[-1] / plain.kv_bytes)
    mean = float(np.mean(weights))
    return Left(mean, mean / whole, float(np.mean(keys)), float(np.mean(of_keys)))


def modelled(
    rows: Sequence[Rows], shape: Shape, device: Device, batch: int, *, together: bool = False
) -> Counts:
    """Seconds of plain decoding over seconds of drafting: a speedup, [K, N].

    Args:
        together: all rows have the same set at any moment, whichever they ended with.
    """
    over, under = [], []
    for part in rows:
        shared = None
        if batch > 1 and not together:
            shared = len(set(part.dropped[0]).intersection(*part.dropped)) if part.dropped else 0
        pairs = [_row(part, i, shape, device, batch, shared) for i in range(len(part))]
        over.append([a for a, _ in pairs])
        under.append([b for _, b in pairs])
    return Counts.of(over, under)


def _row(
    rows: Rows, i: int, shape: Shape, device: Device, batch: int, shared: int | None
) -> tuple[float, float]:
    passes = rows.passes[i]
    if not passes:
        return 0.0, 0.0
    sizes = {"batch": batch, "context": rows.prompt[i] + rows.tokens[i] / 2}
    plain = model_pass(shape, device, **sizes).seconds
    draft = model_pass(shape, device, saving=_saving(rows, i, shared), **sizes).seconds
    tokens = 1 + rows.drafted[i] / passes
    verified = model_pass(shape, device, tokens=tokens, **sizes).seconds
    return rows.committed[i] * plain, rows.own[i] * draft + passes * verified


def _saving(rows: Rows, i: int, shared: int | None) -> Saving:
    dropped = len(rows.dropped[i]) if rows.own[i] else 0
    return Saving(
        dropped_attention=dropped,
        dropped_mlps=rows.mlps if rows.own[i] else 0,
        windowed=rows.windowed[i],
        window=SINKS + WINDOW,
        shared_attention=None if shared is None else min(shared, dropped),
    )
