"""No row is lost, doubled or changed: chunks, blocks, anti-join, compaction.

The model to compare with is plain Python: lists and sets of ids. What copies of a row and deaths
on the way mean for compaction is in `test_order`.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.chunks
import pipeline.compaction
from admg.config import EngineConfig, SamplingParams
from pipeline.blocks import calls_in_flight, rows_per_block, rows_per_call
from pipeline.chunks import chunks_of
from pipeline.config import PromptConfig, RunConfig
from pipeline.key_columns import id_keys, stored_keys
from pipeline.ledger import read_ledger
from pipeline.prepare import Prepare
from pipeline.run import pending_chunks
from pipeline.sink import commit
from pipeline.source import ScannedChunk, open_source
from pipeline.storage import Store
from tests.pipeline.outputs import PRINT, SCHEMA, rows
from tests.pipeline.test_order import RUNS, Copy, commit_runs, end_run, job_of, scan_of

SIZES = st.lists(st.integers(0, 40), max_size=6)


@contextmanager
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp())
    try:
        yield path
    finally:
        shutil.rmtree(path)


@settings(max_examples=40, deadline=None)
@given(
    shards=st.lists(SIZES, min_size=1, max_size=4),
    chunk=st.integers(1, 60),
    batch=st.integers(1, 50),
)
def test_every_row_is_read_in_one_chunk_and_in_order(
    shards: list[list[int]], chunk: int, batch: int
) -> None:
    """Whatever row groups the shards have, and whatever a chunk should hold."""
    with (
        folder() as path,
        mock.patch.multiple(pipeline.chunks, _CHUNK_ROWS=chunk, _BATCH_ROWS=batch),
    ):
        count = 0
        schema = pa.schema([("id", pa.int64()), ("prompt", pa.string())])
        for i, groups in enumerate(shards):
            with pq.ParquetWriter(path / f"{i}.parquet", schema) as writer:
                for size in groups:
                    ids = range(count, count + size)
                    table = pa.table({"id": ids, "prompt": ["x"] * size}, schema=schema)
                    writer.write_table(table, row_group_size=max(1, size))
                    count += size
        config = RunConfig((str(path),), "out", "model")
        source = open_source(config)
        tables = [list(part.read(source.schema)) for part in source.chunks]
        assert [i for part in tables for t in part for i in t["id"].to_pylist()] == list(
            range(count)
        )
        read = [sum(table.num_rows for table in part) for part in tables]
        assert read == [part.rows for part in source.chunks]
        assert all(table.num_rows <= batch for part in tables for table in part)
        scan = source.scan(config)
        assert scan.rows == count
        assert [len(part.keys) for part in scan.chunks] == read


@given(st.lists(st.integers(0, 30_000), max_size=30))
def test_chunks_are_neither_small_nor_without_end(groups: list[int]) -> None:
    shard: Any = None
    chunks = list(chunks_of(shard, pa.schema([]), groups))
    assert [group for part in chunks for group in part.row_groups] == list(range(len(groups)))
    for part in chunks:
        sizes = [groups[i] for i in part.row_groups]
        assert part.rows == sum(sizes)
        # Without its last row group it would have been too small to stand alone.
        assert part.rows - sizes[-1] < pipeline.chunks._CHUNK_ROWS
    assert all(part.rows >= pipeline.chunks._CHUNK_ROWS for part in chunks[:-1])


@given(
    tokens=st.integers(1, 10**6),
    rows=st.integers(1, 10**9),
    actors=st.integers(1, 1000),
    seqs=st.integers(1, 4096),
    gpus=st.sampled_from([0.0, 0.5, 8.0]),
    speed=st.none() | st.floats(1e-3, 1e6),
)
def test_blocks_are_small_and_keep_the_batch_full(
    tokens: int, rows: int, actors: int, seqs: int, gpus: float, speed: float | None
) -> None:
    config = RunConfig(
        ("in",),
        "out",
        "model",
        sampling=SamplingParams(max_tokens=tokens),
        engine=EngineConfig(max_num_seqs=seqs),
    )
    size = rows_per_block(config, rows, gpus, speed, None, actors)
    assert 1 <= size <= 256
    assert 2 * actors * (size - 1) < rows
    assert 8 * actors * (size - 1) < rows or size - 1 < 1.5 * seqs
    call = rows_per_call(config, size)
    assert 1 <= call <= min(size, seqs)
    calls = calls_in_flight(config, call)
    assert 2 <= calls <= 64
    assert calls == 64 or (calls - 1) * call >= 2 * seqs
    fewer = calls_in_flight(config, call, rows // actors)
    assert 2 <= fewer <= calls and (fewer == 2 or fewer * call * actors <= rows)


def input_table(prompts: dict[str, str]) -> pa.Table:
    schema = pa.schema([("id", pa.string()), ("prompt", pa.string())])
    return pa.table({"id": list(prompts), "prompt": list(prompts.values())}, schema=schema)


def pieces(table: pa.Table, cuts: Sequence[int]) -> list[pa.Table]:
    ends = [0, *sorted(min(cut, table.num_rows) for cut in cuts), table.num_rows]
    return [table.slice(a, b - a) for a, b in itertools.pairwise(ends)]


@settings(max_examples=60, deadline=None)
@given(
    runs=RUNS,
    prompts=st.dictionaries(st.sampled_from("abcdefghij"), st.sampled_from("pq")),
    cuts=st.lists(st.integers(0, 10), max_size=3),
    retry_failed=st.booleans(),
)
def test_pending_is_what_no_committed_row_has(
    runs: list[list[list[Copy]]], prompts: dict[str, str], cuts: list[int], retry_failed: bool
) -> None:
    """However the input is cut into pieces, and whatever runs have left: no row is in both."""
    with folder() as path:
        store = commit_runs(str(path / "out"), runs)
        ledger = read_ledger(store, "id")
    done = ledger.only_ok() if retry_failed else ledger
    copies = [c for run in runs for block in run for c in block]
    finished = {(c.id, c.prompt) for c in copies if not (retry_failed and c.failed)}
    known = {(c.id, c.prompt) for c in copies}
    pending = {i for i, p in prompts.items() if (i, p) not in finished}
    changed = {i for i, p in prompts.items() if (i, p) not in known and i in {c.id for c in copies}}

    everything = Prepare("id", (), PromptConfig())
    rest = Prepare("id", (), PromptConfig(), done.keys)
    left: list[str] = []
    scanned: list[ScannedChunk] = []
    numbers: list[int] = []
    for piece in pieces(input_table(prompts), cuts):
        whole, part = everything(piece), rest(piece)
        assert part.schema == whole.schema
        left += part["id"].to_pylist()
        scanned.append(scanned_chunk(whole))
        numbers.append(part.num_rows)
    assert left == [i for i in prompts if i in pending]

    job = job_of(store)
    recompute = replace(job, config=replace(job.config, on_changed="recompute"))
    found = pending_chunks(recompute, scanned, ledger, done)
    assert [rows for _, rows in found] == [n for n in numbers if n]
    if changed:
        with pytest.raises(ValueError, match=r"have an id that output .* another prompt"):
            pending_chunks(job, scanned, ledger, done)
    else:
        assert len(pending_chunks(job, scanned, ledger, done)) == len(found)


def scanned_chunk(table: pa.Table) -> ScannedChunk:
    chunk: Any = mock.Mock(rows=table.num_rows)
    none = np.empty((0, 2), np.uint64)
    if not table.num_rows:
        return ScannedChunk(chunk, none, none)
    return ScannedChunk(chunk, id_keys(table["id"]), stored_keys(table["row_key"]))


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    failed=st.sets(st.integers(0, 35)),
    order=st.randoms(use_true_random=False),
    most_rows=st.sampled_from([0, 1, 3, 10, 1000]),
    most_bytes=st.sampled_from([1, 2_000, 10**9]),
)
def test_compaction_changes_no_value(
    sizes: list[int], failed: set[int], order: Any, most_rows: int, most_bytes: int
) -> None:
    """Any rows in any files: the same rows, with all their columns, in files that are sorted."""
    count = sum(sizes)
    ids = [f"r{i:02}" for i in range(count)]
    order.shuffle(ids)
    given = rows(ids, [f"p{i}" for i in ids], [i in failed for i in range(count)])
    statistics = given.set_column(
        SCHEMA.get_field_index("acceptance_histogram"),
        SCHEMA.field("acceptance_histogram"),
        pa.array([list(range(i % 4)) or None for i in range(count)], pa.list_(pa.int64())),
    )
    with folder() as path, mock.patch.object(pipeline.compaction, "_MOST_BYTES", most_bytes):
        store = Store(str(path / "out"), 1)
        store.prepare()
        ends = [0, *itertools.accumulate(sizes)]
        for a, b in itertools.pairwise(ends):
            commit(store, PRINT, statistics.slice(a, b - a))
        end_run(store, scan_of(ids, [f"p{i}" for i in ids]), most_rows)
        files = [pq.read_table(store.path(name)) for name in store.names(".parquet")]
    assert all(t["id"].to_pylist() == sorted(t["id"].to_pylist()) for t in files)
    assert not most_rows or all(0 < t.num_rows <= most_rows for t in files)
    whole = pa.concat_tables(files).replace_schema_metadata().sort_by("id")
    assert whole.equals(statistics.sort_by("id"))
