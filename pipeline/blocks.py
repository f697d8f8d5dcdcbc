"""How many rows are committed together, and how many go to an actor at once."""

from __future__ import annotations

import json
import math

from pipeline.config import RunConfig
from pipeline.manifest import MANIFEST
from pipeline.storage import Store

_BLOCK_SECONDS = 180.0
# Blocks of one actor's share of the job, at least and at most: so much of it may be decoded and not
# committed.
_FEWEST_EACH, _MOST_EACH = 2, 8
_MOST_ROWS = 256
_MOST_CALLS = 64
# Tokens a second of one actor where nothing has been measured: a large model, on the slow side.
_GPU_SPEED, _CPU_SPEED = 500.0, 30.0


def rows_per_block(
    config: RunConfig,
    rows: int,
    gpus: float,
    measured: float | None,
    tokens: int | None = None,
    actors: int = 1,
) -> int:
    """Rows committed together: as configured, or what takes an actor a few minutes at most.

    The rows of a batch are decoded side by side, so fewer in a block would hardly be committed
    sooner. Hence a block of a small job has about a batch: each one takes some of the engine's time
    where that is on CPUs. And hence it does little harm that the first run of a job has nothing
    measured: where actors are far slower than is assumed, blocks take longer, but so do all rows.

    Args:
        config: the run's.
        rows: what is to be decoded in all, by this run.
        gpus: for each actor.
        measured: tokens a second of one actor in an earlier run of this job, where there was one.
        tokens: the longest completion that a row may have (None: the job's `max_tokens`).
        actors: that there are.
    """
    if config.rows_per_block is not None:
        return config.rows_per_block
    speed = measured or (_GPU_SPEED if gpus else _CPU_SPEED)
    in_time = speed * _BLOCK_SECONDS / (tokens or config.sampling.max_tokens)
    share = rows / actors
    batches = round(share / config.engine.max_num_seqs)
    blocks = min(_MOST_EACH, max(_FEWEST_EACH, batches))
    return max(1, min(_MOST_ROWS, int(in_time), math.ceil(share / blocks)))


def rows_per_call(config: RunConfig, committed: int) -> int:
    """Rows that go to an actor together: equal parts of a file's, each of a batch at most.

    At the job's end no actor has more than its batches to do while others have nothing. An audit
    wants more at once: its groups are parts of a block.
    """
    if config.audit:
        return committed
    parts = -(-committed // config.engine.max_num_seqs)
    return -(-committed // parts)


def calls_in_flight(config: RunConfig, rows: int, share: int | None = None) -> int:
    """Calls with so many rows that one actor works on at once.

    One beyond twice the batch: the batch then stays full while the last rows of a call are still
    running. An actor that dies has to redo at most these. Of a small job no more than the `share`
    of an actor, in rows, or the first that has loaded its model would take it all; but two, lest an
    engine is empty between one call and the next.
    """
    usual = 1 + -(-2 * config.engine.max_num_seqs // rows)
    most = usual if share is None else max(2, share // rows)
    return min(_MOST_CALLS, usual, most)


def measured_speed(store: Store) -> float | None:
    """Tokens a second of one actor in the last finished run of this output."""
    if not store.exists(MANIFEST):
        return None
    run = json.loads(store.read(MANIFEST)).get("run", {})
    actors = run.get("config", {}).get("actors") or 1
    return (run.get("tokens_per_second") or 0.0) / actors or None
