"""Files are commits: whole or absent, named by their rows, read back as the only record."""

from __future__ import annotations

import errno
import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from pipeline.errors import StorageError
from pipeline.file_systems import resolve
from pipeline.fingerprint import Fingerprint
from pipeline.key_columns import id_keys
from pipeline.keys import as_keys, row_key
from pipeline.ledger import check_same_job, common_schema, read_ledger
from pipeline.manifest import read_manifest
from pipeline.names import FileName
from pipeline.retry import Patience
from pipeline.schema import RowResult, output_schema, result_columns
from pipeline.sink import ResultSink, commit, encode
from pipeline.storage import Store

PRINT = Fingerprint({"model": "m", "sampling.seed": 0})
INPUT = pa.schema([("id", pa.string())])
SCHEMA = output_schema(INPUT, "id", ())


def results(*ids: str) -> pa.Table:
    columns: dict[str, Any] = dict(result_columns([RowResult(text=f"text {i}") for i in ids]))
    columns["id"] = pa.array(ids)
    columns["row_key"] = pa.array([row_key(i, "p") for i in ids], pa.binary(16))
    return pa.table(columns).select(SCHEMA.names).cast(SCHEMA)


class BrokenDisk(io.FileIO):
    """A file that takes ten bytes, then fails for good."""

    def write(self, data: Any) -> int:
        super().write(bytes(data)[:10])
        raise OSError(errno.EIO, "input/output error")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "out"))
    store.prepare()
    return store


def test_names_depend_on_rows_fingerprint_and_run_alone() -> None:
    keys = as_keys([row_key(i, "p") for i in range(5)])
    ok = np.array([True, False, True, True, True])
    name = FileName.of(PRINT, keys, ok, 7)
    assert FileName.of(PRINT, keys[::-1], ok[::-1], 7) == name
    assert FileName.of(PRINT, keys[1:], ok[1:], 7) != name
    assert FileName.of(PRINT, keys, ~ok, 7) != name
    assert FileName.of(Fingerprint({"model": "n"}), keys, ok, 7) != name
    assert FileName.parse(str(name)) == name
    assert str(name).startswith(f"part-{PRINT.digest[:12]}-00000007-")
    merged = FileName.of(PRINT, keys, ok, 7, merged=True)
    assert FileName.of(PRINT, keys, ok, 8) > merged > name
    assert FileName.parse("other.parquet") is FileName.parse("part-0-1.parquet") is None


def test_a_task_that_runs_twice_leaves_one_file(store: Store) -> None:
    sink = pickle.loads(pickle.dumps(ResultSink(store, PRINT, SCHEMA)))
    first = sink.write([results("b", "a"), results("c")], None)
    again = sink.write([results("c", "b", "a")], None)
    assert first == again
    assert [f.rows for f in first] == [3]
    assert store.names(".parquet") == [first[0].name]
    table = pq.read_table(store.path(first[0].name))
    assert table["id"].to_pylist() == ["a", "b", "c"]
    assert table.schema.remove_metadata() == SCHEMA
    assert sink.write([results()], None) == []


@pytest.mark.parametrize("point", ["open", "write", "fsync", "replace"])
def test_a_crash_inside_a_commit_leaves_nothing_to_see(
    store: Store, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """At each step before the rename the folder looks as before; afterwards the file is whole."""

    def crash(*_: Any) -> None:
        raise OSError("crash")

    with monkeypatch.context() as patch:
        if point in ("fsync", "replace"):
            patch.setattr(os, point, crash)
        else:
            broken = {"open": crash, "write": BrokenDisk}
            patch.setattr("pipeline.storage.open", broken[point], raising=False)
        with pytest.raises(StorageError):
            commit(store, PRINT, results("a"))
    assert store.names(".parquet") == []
    assert read_ledger(store, "id").rows == 0
    store.prepare()
    assert store.names("", "_admg/tmp") == []
    commit(store, PRINT, results("a"))
    assert read_ledger(store, "id").rows == 1


def test_object_stores_get_one_put() -> None:
    """Without a rename the final name is written at once, and is not seen unless it is whole."""
    store = Store("memory://bucket/out")
    store.prepare()
    written = commit(store, PRINT, results("a", "b"))
    assert store.names(".parquet") == [written.name]
    assert store.names("", "_admg/tmp") == []
    assert read_ledger(store, "id").rows == 2
    store.delete(written.name)
    store.delete(written.name)
    assert not store.exists(written.name)


def test_uris_and_paths_lead_to_the_same_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a b%20c"
    Store(str(folder)).prepare()
    Store(str(folder)).write("x", b"1")
    assert Store(folder.as_uri()).read("x") == b"1"
    assert resolve(str(folder)) == resolve(folder.as_uri())
    assert Store(f"{folder}/").root == str(folder)


def test_the_ledger_is_what_the_files_hold(store: Store) -> None:
    files = [commit(store, PRINT, results("a", "b")), commit(store, PRINT, results("c"))]
    ledger = read_ledger(store, "id")
    assert {f.name: f.rows for f in ledger.files} == {f.name: f.rows for f in files}
    asked = as_keys([row_key(i, "p") for i in "abcd"])
    assert ledger.keys().contains(asked).tolist() == [True, True, True, False]
    assert ledger.ids().contains(id_keys(pa.chunked_array([["c", "d"]]))).tolist() == [True, False]


def test_an_empty_output_has_an_empty_ledger(tmp_path: Path) -> None:
    nowhere = Store(str(tmp_path / "nowhere"))
    assert read_ledger(nowhere, "id").rows == 0
    check_same_job(nowhere, PRINT)
    assert not (tmp_path / "nowhere").exists()


def test_another_configuration_is_refused_by_name(store: Store) -> None:
    commit(store, PRINT, results("a"))
    check_same_job(store, Fingerprint({"sampling.seed": 0, "model": "m"}))
    with pytest.raises(ValueError) as caught:
        check_same_job(store, Fingerprint({"model": "n", "sampling.seed": 7}))
    assert "model was 'm' and is now 'n'; sampling.seed was 0 and is now 7" in str(caught.value)


def test_files_of_others_are_refused(store: Store) -> None:
    pq.write_table(pa.table({"x": [1]}), store.path("mine.parquet"))
    with pytest.raises(ValueError, match=r"must be empty or this job's own, but holds mine"):
        check_same_job(store, PRINT)


def test_a_file_that_cannot_be_read_is_named(store: Store) -> None:
    name = commit(store, PRINT, results("a")).name
    Path(store.path(name)).write_bytes(b"PAR1 torn")
    with pytest.raises(ValueError, match=name):
        read_ledger(store, "id")


def test_a_file_whose_rows_were_changed_is_named(store: Store) -> None:
    name = commit(store, PRINT, results("a", "b")).name
    table = pq.read_table(store.path(name))
    pq.write_table(table.slice(1), store.path(name))
    with pytest.raises(ValueError, match=rf"{name} was changed by somebody else: its rows are not"):
        read_ledger(store, "id")
    pq.write_table(table.drop_columns(["row_key"]), store.path(name))
    with pytest.raises(ValueError, match=rf"{name} was .*: it has no column 'row_key'"):
        read_ledger(store, "id")


def test_an_output_keeps_one_schema_while_its_input_grows(store: Store) -> None:
    """A column that was all null, or narrower, takes the new type; other changes are refused."""
    commit(store, PRINT, results("a"))
    ledger = read_ledger(store, "id")
    wide = SCHEMA.set(3, pa.field(SCHEMA.names[3], pa.large_string()))
    assert common_schema(store, ledger, SCHEMA) == SCHEMA
    assert common_schema(store, ledger, wide) == wide
    with pytest.raises(ValueError, match=r"column 'completion_tokens' is of type int64, but"):
        place = SCHEMA.get_field_index("completion_tokens")
        other = SCHEMA.set(place, pa.field("completion_tokens", pa.list_(pa.string())))
        common_schema(store, ledger, other)
    with pytest.raises(ValueError, match=r"it has the columns id, row_key.* and not id, row_key"):
        common_schema(store, ledger, SCHEMA.remove(4))


def test_files_carry_their_fingerprint_and_one_schema(store: Store) -> None:
    """A file of error rows alone, with every other column null, has the same types."""
    for table in (
        results("a"),
        results("b").set_column(2, SCHEMA.field(2), pa.nulls(1, pa.string())),
    ):
        schema = pq.read_schema(pa.BufferReader(encode(table, PRINT)))
        assert schema.remove_metadata() == SCHEMA
        assert Fingerprint.from_json(schema.metadata[b"admg.fingerprint"]) == PRINT


def test_input_columns_must_not_have_result_names() -> None:
    schema = pa.schema([("id", pa.string()), ("status", pa.string())])
    with pytest.raises(ValueError, match=r"'status' has the name of a result column"):
        output_schema(schema, "id", ("status",))


def test_an_unfinished_output_has_no_manifest(store: Store) -> None:
    with pytest.raises(ValueError, match=r"it must be a finished run's"):
        read_manifest(store.uri)


def test_folders_too_are_made_and_emptied_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may pass of a storage ends no run at its start either."""
    Store(str(tmp_path), fence=1, room="-old").prepare()
    refused: list[str] = []

    class Busy:
        def __getattr__(self, name: str) -> Any:
            if name in ("create_dir", "move", "delete_dir") and name not in refused:
                refused.append(name)
                return self._refuse
            return getattr(local, name)

        def _refuse(self, *_: object, **__: object) -> None:
            raise OSError(errno.ESTALE, "Stale file handle")

    local, busy = fs.LocalFileSystem(), Busy()
    monkeypatch.setattr(Store, "filesystem", property(lambda _: busy))
    store = Store(str(tmp_path), fence=2, patience=Patience(60, first=0.001, longest=0.001))
    store.prepare()
    assert refused == ["move", "delete_dir", "create_dir"]
    assert [p.name for p in (tmp_path / "_admg" / "tmp").iterdir()] == ["00000002"]
