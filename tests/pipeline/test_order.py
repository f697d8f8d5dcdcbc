"""Reconciliation and compaction: whatever copies there are and wherever a run dies, one row stays.

The model to compare with is plain Python: all copies of an id, the best of them by the rule.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.compaction import plan, write_anew
from pipeline.config import RunConfig
from pipeline.errors import PipelineError
from pipeline.finish import finish
from pipeline.job import Job
from pipeline.key_columns import id_keys, stored_keys
from pipeline.keys import KeySet
from pipeline.lease import LeaseTimes, hold
from pipeline.ledger import read_ledger
from pipeline.manifest import MANIFEST, SUCCESS, read_manifest
from pipeline.names import FileName
from pipeline.settle import best_rows
from pipeline.sink import commit
from pipeline.source import ScannedChunk
from pipeline.storage import Store
from tests.pipeline.outputs import PRINT, SCHEMA, rows, text_of

QUICK = LeaseTimes(every=3600, stale_after=0.0)


@dataclass(frozen=True)
class Copy:
    """One committed row."""

    id: str
    prompt: str
    failed: bool


COPIES = st.builds(Copy, st.sampled_from("abcdefgh"), st.sampled_from("pq"), st.booleans())
# Each run commits blocks; a block holds an id once.
BLOCKS = st.lists(COPIES, min_size=1, max_size=6, unique_by=lambda c: c.id)
RUNS = st.lists(st.lists(BLOCKS, max_size=3), min_size=1, max_size=3)


def commit_runs(uri: str, runs: Sequence[Sequence[Sequence[Copy]]]) -> Store:
    for fence, blocks in enumerate(runs, start=1):
        store = Store(uri, fence)
        store.prepare()
        for block in blocks:
            ids, prompts = [c.id for c in block], [c.prompt for c in block]
            commit(store, PRINT, rows(ids, prompts, [c.failed for c in block]))
    return Store(uri)


def scan_of(ids: Sequence[str], prompts: Sequence[str]) -> list[ScannedChunk]:
    """The input as a run has scanned it."""
    table = rows(ids, prompts)
    part = ScannedChunk(
        None,  # type: ignore[arg-type]
        id_keys(table["id"]),
        stored_keys(table["row_key"]),
    )
    return [part]


def job_of(store: Store, most_rows: int = 4) -> Job:
    config = RunConfig(("in",), store.uri, "m", max_rows_per_file=most_rows)
    return Job(config, None, PRINT, None, SCHEMA, store, None)  # type: ignore[arg-type]


def end_run(store: Store, scanned: list[ScannedChunk], most_rows: int = 4, decoded: int = 1) -> Any:
    """The end of a run that has the output to itself."""
    with hold(store, QUICK) as lease:
        job = job_of(lease.store, most_rows)
        return finish(job, scanned, lease, {"rows_decoded": decoded, "bad_shards": []})


class Died(BaseException):
    """The process was killed here."""


@contextmanager
def death_at(change: int) -> Iterator[list[str]]:
    """Die before the change of this number to the output; yields what was done until then."""
    done: list[str] = []
    real_write, real_delete = Store.write_once, Store.delete

    def write(self: Store, name: str, data: Any) -> None:
        if len(done) == change:
            raise Died
        done.append(f"write {name}")
        real_write(self, name, data)

    def delete(self: Store, name: str) -> None:
        if name.startswith("_admg/"):
            real_delete(self, name)
            return
        if len(done) == change:
            raise Died
        done.append(f"delete {name}")
        real_delete(self, name)

    with mock.patch.object(Store, "write_once", write), mock.patch.object(Store, "delete", delete):
        try:
            yield done
        except Died:
            return


def best_by_hand(
    runs: Sequence[Sequence[Sequence[Copy]]], wanted: dict[str, str]
) -> dict[str, tuple[bool, bool]]:
    """Of each id: whether its best copy has the input's prompt, and whether it failed."""
    best: dict[str, tuple[bool, bool]] = {}
    for run in runs:
        for block in run:
            for copy in block:
                rank = (wanted.get(copy.id) == copy.prompt, not copy.failed)
                old = best.get(copy.id)
                best[copy.id] = rank if old is None else max(old, rank)
    return best


@settings(max_examples=40, deadline=None)
@given(RUNS, st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from("pq")), st.data())
def test_one_copy_stays_wherever_it_is_interrupted(
    runs: list[list[list[Copy]]], prompts: dict[str, str], data: st.DataObject
) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        store = commit_runs(str(folder / "out"), runs)
        # The input holds what is committed, so that the run can end.
        there = {(c.id, c.prompt) for run in runs for block in run for c in block}
        wanted = {i: p for i, p in prompts.items() if (i, p) in there}
        scanned = scan_of(list(wanted), list(wanted.values()))
        most_rows = data.draw(st.sampled_from([0, 1, 2, 3, 5, 100]))
        deaths = data.draw(st.lists(st.integers(0, 8), max_size=3))
        expected = best_by_hand(runs, wanted)
        for change in deaths:
            with death_at(change):
                end_run(store, scanned, most_rows)
            check_readable(store, set(expected))
        end_run(store, scanned, most_rows)
        check_end(store, expected, wanted, most_rows)
        ledger = read_ledger(store, "id")
        best = best_rows(ledger, KeySet.of(s.keys for s in scanned))
        assert best.all()
        assert not plan(ledger, best, SCHEMA, most_rows)
    finally:
        shutil.rmtree(folder)


def check_readable(store: Store, ids: set[str]) -> None:
    """In the middle of it: no id is missing, and what says that it is whole is so."""
    tables = {n: pq.read_table(store.path(n)) for n in store.names(".parquet")}
    everything = [i for t in tables.values() for i in t["id"].to_pylist()]
    assert set(everything) == ids
    if store.exists(SUCCESS):
        assert len(everything) == len(ids)
    if store.exists(MANIFEST):
        names = [f["name"] for f in read_manifest(store.uri)["files"]]
        named = [i for n in names for i in tables[n]["id"].to_pylist()]
        assert sorted(named) == sorted(ids)


def check_end(
    store: Store, expected: dict[str, tuple[bool, bool]], wanted: dict[str, str], most: int
) -> None:
    assert store.exists(SUCCESS)
    check_readable(store, set(expected))
    files = [pq.read_table(store.path(n)) for n in store.names(".parquet")]
    assert all(t["id"].to_pylist() == sorted(t["id"].to_pylist()) for t in files)
    assert not most or all(t.num_rows <= most for t in files)
    for row in (r for t in files for r in t.to_pylist()):
        right, ok = expected[row["id"]]
        assert (row["status"] == "ok") == ok
        if row["id"] in wanted:
            assert right
        if ok:
            prompts = [wanted[row["id"]]] if row["id"] in wanted else ["p", "q"]
            assert row["completion"] in [text_of(row["id"], p) for p in prompts]


def test_every_death_on_the_way_to_success(tmp_path: Path) -> None:
    """All of them in turn, each on the same output: new files, manifest, old files, success."""
    first = [f"r{i:02}" for i in range(10)]
    scanned = scan_of(first, ["p"] * 10)
    commit_runs(str(tmp_path / "a"), [[[Copy(i, "p", False)] for i in first]])
    for change in range(99):
        copy = tmp_path / f"death-{change}"
        shutil.copytree(tmp_path / "a", copy)
        store = Store(str(copy))
        with death_at(change) as did:
            end_run(store, scanned)
        check_readable(store, set(first))
        if len(did) < change:
            break
        end_run(store, scanned)
        assert sorted(pq.read_table(copy)["id"].to_pylist()) == first
        assert max(pq.read_metadata(f).num_rows for f in copy.glob("*.parquet")) <= 4
    assert [line.split("-")[0].split("/")[-1] for line in did] == [
        "delete _SUCCESS",
        "commits.arrow",
        *["write merged"] * 3,
        "manifest.json",
        *["delete part"] * 10,
        "write _SUCCESS",
    ]


def test_rows_that_are_missing_are_no_success(tmp_path: Path) -> None:
    """As many rows as the input has, but not the input's: sets are compared and not counts."""
    store = commit_runs(str(tmp_path / "out"), [[[Copy("a", "p", False), Copy("x", "p", False)]]])
    with pytest.raises(PipelineError, match=r"1 rows of the input are not in output"):
        end_run(store, scan_of(["a", "b"], ["p", "p"]))
    with pytest.raises(PipelineError, match=r"1 rows of the input are not in output"):
        end_run(store, scan_of(["a", "x"], ["p", "another prompt"]))
    assert not store.exists(SUCCESS)
    assert len(store.names(".parquet")) == 1


def test_full_files_are_left_alone(tmp_path: Path) -> None:
    """A night's few rows do not make the whole output be written again."""
    many = [Copy(f"r{i:03}", "p", False) for i in range(40)]
    store = commit_runs(str(tmp_path / "out"), [[many[:20], many[20:]]])
    end_run(store, scan_of([c.id for c in many], ["p"] * 40), most_rows=20)
    full = store.names(".parquet")
    assert [name[:5] for name in full] == ["part-"] * 2
    for i in range(3):
        block = Store(str(tmp_path / "out"), 5)
        block.prepare()
        commit(block, PRINT, rows([f"new{i}"]))
    end_run(store, [], most_rows=20)
    assert [n for n in store.names(".parquet") if n.startswith("part-")] == full
    assert [read_ledger(store, "id").rows, len(store.names(".parquet"))] == [43, 3]


def test_old_files_take_the_outputs_schema(tmp_path: Path) -> None:
    """Where a kept column was null in all rows of one night and text in the next."""
    kept = pa.schema([*SCHEMA, pa.field("note", pa.null())])
    wide = kept.set(len(kept) - 1, pa.field("note", pa.string()))
    store = Store(str(tmp_path / "out"), 1)
    store.prepare()
    commit(store, PRINT, rows(["a"]).append_column("note", pa.nulls(1)).cast(kept))
    commit(store, PRINT, rows(["b"]).append_column("note", pa.array(["x"])).cast(wide))
    ledger = read_ledger(store, "id")
    best = best_rows(ledger, KeySet.of([]))
    todo = plan(ledger, best, wide, 0)
    assert [ledger.files[i].schema for i in todo.sources] == [kept]
    (name,) = write_anew(store, PRINT, ledger, best, todo, wide, 0)
    assert pq.read_schema(store.path(name)).remove_metadata() == wide


def test_merged_files_are_compact_and_read_by_others(tmp_path: Path) -> None:
    """zstd, a page index, dictionaries where values repeat and only there; DuckDB reads it."""
    copies = [Copy(f"r{i:04}", "p", i % 50 == 0) for i in range(500)]
    store = commit_runs(str(tmp_path / "out"), [[[c] for c in copies[:20]], [copies[20:]]])
    end_run(store, scan_of([c.id for c in copies], ["p"] * 500), most_rows=1000)
    (name,) = store.names(".parquet")
    parsed = FileName.parse(name)
    assert parsed is not None
    assert parsed.merged
    meta = pq.read_metadata(store.path(name))
    columns = [meta.row_group(0).column(i) for i in range(meta.num_columns)]
    assert {c.compression for c in columns} == {"ZSTD"}
    assert all(c.has_column_index and c.has_offset_index for c in columns)
    coded = {c.path_in_schema: c.has_dictionary_page for c in columns}
    assert coded["status"] and coded["error_code"]
    assert not any(coded[n] for n in ("id", "row_key", "completion"))
    query = "select count(*), count(distinct id), sum((status = 'error')::int) from read_parquet(?)"
    found = duckdb.execute(query, [f"{store.root}/*.parquet"]).fetchone()
    assert found == (500, 500, 10)


def test_an_output_in_one_piece_is_left_as_it_is(tmp_path: Path) -> None:
    store = commit_runs(str(tmp_path / "out"), [[[Copy("a", "p", False)]]])
    scanned = scan_of(["a"], ["p"])
    first = end_run(store, scanned)
    before = {n: store.read(n) for n in (MANIFEST, *store.names(""))}
    assert end_run(store, scanned, decoded=0) == first
    assert {n: store.read(n) for n in before} == before


def test_a_manifest_that_names_a_file_that_is_gone_is_written_again(tmp_path: Path) -> None:
    """Also where its rows are no input any more, so that nothing is left to decode."""
    store = commit_runs(str(tmp_path / "out"), [[[Copy(i, "p", False)] for i in "ab"]])
    end_run(store, scan_of("ab", "pp"), most_rows=0)
    gone, stays = store.names(".parquet")
    (row_id,) = pq.read_table(store.path(stays))["id"].to_pylist()
    store.delete(gone)
    end_run(store, scan_of([row_id], ["p"]), most_rows=0, decoded=0)
    manifest = read_manifest(store.uri)
    assert [(f["name"], f["rows"]) for f in manifest["files"]] == [(stays, 1)]
    assert manifest["totals"]["rows"] == 1
    assert store.exists(SUCCESS)
