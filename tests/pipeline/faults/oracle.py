"""The oracle of all fault tests: ids in = ids out, once each, texts as in the undisturbed run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from admg.config import EngineConfig, SamplingParams
from pipeline.config import RunConfig
from tests.pipeline.conftest import write_shards
from tests.pipeline.standin import expected

MAX_TOKENS = 12


def prompts(count: int, poison: Mapping[int, str] | None = None) -> pa.Table:
    """Rows 0 to `count` - 1; some of them with a word that hurts."""
    words = poison or {}
    texts = [f"prompt of {i} {words.get(i, '')}" for i in range(count)]
    return pa.table({"id": list(range(count)), "prompt": texts})


def config_of(folder: Path, table: pa.Table | None, shards: int = 1, **changes: Any) -> RunConfig:
    """A configuration, with its input written where there is none yet."""
    if table is not None and not (folder / "in").exists():
        size = -(-table.num_rows // shards)
        write_shards(folder / "in", [table.slice(i * size, size) for i in range(shards)])
    base = RunConfig(
        input=(str(folder / "in"),),
        output=str(folder / "out"),
        model="stand-in",
        sampling=SamplingParams(max_tokens=MAX_TOKENS),
        engine=EngineConfig(max_num_seqs=8),
        rows_per_block=8,
    )
    return replace(base, **changes)


def check_output(
    config: RunConfig, table: pa.Table, guilty: Mapping[int, str] | None = None
) -> dict[int, dict[str, Any]]:
    """Check the whole output; `guilty` maps the rows that must be error rows to their code."""
    guilty = guilty or {}
    out = pq.read_table(config.output)
    rows = {row["id"]: row for row in out.to_pylist()}
    assert len(rows) == out.num_rows, Counter(out["id"].to_pylist()).most_common(3)
    texts = dict(zip(table["id"].to_pylist(), table["prompt"].to_pylist(), strict=True))
    assert sorted(rows) == sorted(texts)
    wrong = {i: r["error_code"] for i, r in rows.items() if r["status"] != "ok"}
    assert wrong == dict(guilty)
    for i, row in rows.items():
        if i not in guilty:
            assert row["completion"] == expected(texts[i], config.sampling.max_tokens)
            assert row["attempts"] >= 1
    return rows
