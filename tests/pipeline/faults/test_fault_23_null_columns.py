"""Fault 23: columns that are null in some files, ours and kept ones; one schema over all files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import RunConfig
from pipeline.run import run
from tests.pipeline.conftest import write_shards
from tests.pipeline.faults.oracle import MAX_TOKENS, config_of
from tests.pipeline.standin import StandIn, expected

KEPT = pa.schema(
    [
        ("nested", pa.list_(pa.struct([("a", pa.int16()), ("b", pa.list_(pa.string()))]))),
        ("sparse", pa.timestamp("us", "UTC")),
        ("never", pa.float32()),
        ("exact", pa.decimal128(12, 2)),
        ("small", pa.int8()),
        ("raw", pa.binary()),
        ("big", pa.large_string()),
        ("late", pa.null()),
    ]
)
BLOCK = 8
GOOD, BAD, MIXED = range(BLOCK), range(BLOCK, 2 * BLOCK), range(2 * BLOCK, 3 * BLOCK)


def rows(ids: range, late: pa.DataType) -> pa.Table:
    """Rows whose kept columns are almost all null; of the middle block none has a prompt."""
    values: list[dict[str, Any]] = [dict.fromkeys(KEPT.names) for _ in ids]
    for i, row in zip(ids, values, strict=True):
        if i == 3:
            row |= {"nested": [{"a": 1, "b": ["x", None]}, None], "raw": b"\xff\x00", "big": "text"}
        if i == MIXED[1]:
            row |= {"sparse": 1_700_000_000_000_000, "exact": "3.14", "small": -5}
    schema = KEPT.set(KEPT.get_field_index("late"), pa.field("late", late))
    simple = {f.name: pa.array([r[f.name] for r in values]).cast(f.type) for f in schema}
    nested = pa.array([r["nested"] for r in values], KEPT.field("nested").type)
    table = pa.table({**simple, "nested": nested}, schema=schema)
    prompts = [None if i in BAD or i == MIXED[0] else f"prompt of {i}" for i in ids]
    table = table.append_column("id", pa.array(ids, pa.int32()))
    return table.append_column("prompt", pa.array(prompts, pa.string()))


def check_readers(config: RunConfig, given: pa.Table) -> pa.Table:
    """Everybody reads the folder as one table, with the types and the values of the input."""
    files = sorted(Path(config.output).glob("*.parquet"))
    parts = [pq.read_table(file) for file in files]
    assert all(part.schema.equals(parts[0].schema, check_metadata=True) for part in parts)
    # Files of good rows alone, and of bad rows alone: else this test tests nothing.
    empty = {n for part in parts for n in part.column_names if part[n].null_count == len(part)}
    assert {"completion", "error_code", "error_message", "speedup", "drafter_tokens"} <= empty
    assert {*KEPT.names} <= empty

    whole = pq.read_table(config.output).sort_by("id")
    assert (
        whole.select(KEPT.names)
        .cast(given.select(KEPT.names).schema)
        .equals(given.select(KEPT.names))
    )
    types = {name: whole.schema.field(name).type for name in KEPT.names}
    assert types == {name: given.schema.field(name).type for name in KEPT.names}

    pattern = f"{config.output}/*.parquet"
    loaded = datasets.load_dataset(
        "parquet", data_files=pattern, cache_dir=f"{config.output}-cache", split="train"
    )
    found = duckdb.execute("select id, completion from read_parquet(?)", [pattern]).fetchall()
    texts = dict(zip(whole["id"].to_pylist(), whole["completion"].to_pylist(), strict=True))
    assert dict(zip(loaded["id"], loaded["completion"], strict=True)) == texts
    assert dict(found) == texts
    assert len(loaded) == len(found) == given.num_rows
    return whole


@pytest.mark.usefixtures("ray_cluster")
def test_fault_23_one_schema_whatever_is_null_in_a_file(tmp_path: Path) -> None:
    """Also where a column that was null in all rows of one night is text in the next."""
    first = [rows(ids, pa.null()) for ids in (GOOD, BAD, MIXED)]
    write_shards(tmp_path / "in", first)
    config = config_of(tmp_path, None, keep=tuple(KEPT.names), max_rows_per_file=0)
    report = run(config, engine_factory=StandIn())
    assert report.errors_by_code == {"prompt_null": BLOCK + 1}
    whole = check_readers(config, pa.concat_tables(first))
    for i, text in zip(whole["id"].to_pylist(), whole["completion"].to_pylist(), strict=True):
        good = i not in BAD and i != MIXED[0]
        assert text == (expected(f"prompt of {i}", MAX_TOKENS) if good else None)

    place = KEPT.get_field_index("late")
    filled = pa.chunked_array([["now", *[None] * (BLOCK - 1)]])
    night = rows(range(3 * BLOCK, 4 * BLOCK), pa.string()).set_column(place, "late", filled)
    pq.write_table(night, tmp_path / "in" / "night.parquet")
    report = run(replace(config, rows_per_block=3), engine_factory=StandIn())
    assert report.rows_reused == 3 * BLOCK
    before = [rows(ids, pa.string()) for ids in (GOOD, BAD, MIXED)]
    check_readers(config, pa.concat_tables([*before, night]))
