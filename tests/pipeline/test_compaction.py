"""Sizes: what is merged once is left alone, and memory has a bound, whatever texts there are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.compaction
from pipeline.compaction import plan, write_anew
from pipeline.keys import KeySet
from pipeline.ledger import read_ledger
from pipeline.manifest import MANIFEST, known_sizes, read_manifest
from pipeline.settle import best_rows
from pipeline.sink import commit
from pipeline.storage import Store
from tests.pipeline.outputs import PRINT, SCHEMA, rows
from tests.pipeline.test_order import end_run, scan_of

# Lengths of one text that comes again and again: Parquet keeps it once, memory every time.
BLOCKS = st.lists(st.lists(st.sampled_from([0, 50, 2000]), min_size=1, max_size=6), max_size=9)


def commit_texts(uri: str, blocks: Sequence[Sequence[int]]) -> tuple[Store, list[str]]:
    """Blocks of rows with texts of these lengths; the output and the ids."""
    store, ids = Store(uri, 1), []
    store.prepare()
    for block in blocks:
        new = [f"r{len(ids) + i:03}" for i in range(len(block))]
        texts = pa.array(["x" * n for n in block], pa.string())
        place = SCHEMA.get_field_index("error_message")
        commit(store, PRINT, rows(new).set_column(place, SCHEMA.field(place), texts))
        ids += new
    return Store(uri), ids


@settings(max_examples=20, deadline=None)
@given(BLOCKS, st.sampled_from([0, 1, 3, 100]), st.sampled_from([1, 1000, 5000, 20_000]))
def test_what_was_merged_is_not_merged_again(
    blocks: list[list[int]], most_rows: int, most_bytes: int
) -> None:
    with (
        TemporaryDirectory() as folder,
        mock.patch.object(pipeline.compaction, "_MOST_BYTES", most_bytes),
    ):
        store, ids = commit_texts(f"{folder}/out", blocks)
        scanned = scan_of(ids, ["p"] * len(ids))
        end_run(store, scanned, most_rows)
        ledger = read_ledger(store, "id").sized(known_sizes(store))
        assert ledger.rows == len(ids)
        best = best_rows(ledger, KeySet.of(s.keys for s in scanned))
        assert not plan(ledger, best, SCHEMA, most_rows)
        before = {n: store.read(n) for n in (MANIFEST, *store.names(""))}
        end_run(store, scanned, most_rows, decoded=0)
        assert {n: store.read(n) for n in before} == before


def test_files_are_not_read_further_ahead_than_memory_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, ids = commit_texts(str(tmp_path / "out"), [[2000]] * 12)
    store = replace(store, fence=1)
    ledger = read_ledger(store, "id")
    best = best_rows(ledger, KeySet.of([]))
    todo = plan(ledger, best, SCHEMA, 100)
    assert len(todo.sources) == len(ids)
    begun: list[str] = []
    at_commits: list[int] = []
    real_read, real_commit = pipeline.compaction.read_columns, pipeline.compaction.commit

    def read(of: Store, name: str, columns: Any) -> pa.Table:
        begun.append(name)
        return real_read(of, name, columns)

    def commit_counted(*args: Any, **more: Any) -> Any:
        at_commits.append(len(begun))
        return real_commit(*args, **more)

    monkeypatch.setattr(pipeline.compaction, "read_columns", read)
    monkeypatch.setattr(pipeline.compaction, "commit", commit_counted)
    three = 3 * max(file.bytes for file in ledger.files)
    monkeypatch.setattr(pipeline.compaction, "_MOST_BYTES", three)
    write_anew(store, PRINT, ledger, best, todo, SCHEMA, 1)
    assert len(at_commits) == len(ids)
    assert all(read <= done + 3 for done, read in enumerate(at_commits, start=1))


def test_files_that_nobody_knows_the_size_of_have_that_of_their_columns(tmp_path: Path) -> None:
    """A manifest of an older run, and one that somebody has removed."""
    store, ids = commit_texts(str(tmp_path / "out"), [[2000, 2000], [2000, 2000]])
    scanned = scan_of(ids, ["p"] * len(ids))
    end_run(store, scanned, most_rows=100)
    (name,) = store.names(".parquet")
    assert known_sizes(store)[name] > 8000
    manifest = read_manifest(store.uri)
    manifest["files"] = [{"name": name, "rows": 4}]
    (Path(store.root) / MANIFEST).write_text(json.dumps(manifest))
    assert known_sizes(store) == {}
    store.delete(MANIFEST)
    assert known_sizes(store) == {}
    end_run(store, scanned, most_rows=100, decoded=0)
    assert 2000 < known_sizes(store)[name] < 8000
