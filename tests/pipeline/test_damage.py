"""Outputs that somebody has damaged: whatever was changed, one clear sentence and no traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import PipelineError, StorageError
from pipeline.ledger import check_same_job, read_columns, read_ledger
from pipeline.manifest import MANIFEST, read_manifest
from pipeline.storage import Store
from tests.pipeline.outputs import PRINT, SCHEMA, commit_rows
from tests.pipeline.refusing import SLOW_DOWN, STALE, refusing
from tests.pipeline.test_order import end_run, scan_of

IDS = [f"r{i:02}" for i in range(20)]
# Where in the file, from its end, and what; a few at once get past the first check.
CHANGES = st.lists(st.tuples(st.integers(1, 10_000), st.integers(0, 255)), min_size=1, max_size=4)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(str(tmp_path / "out"))
    store.prepare()
    commit_rows(store, *IDS[:10])
    commit_rows(store, *IDS[10:])
    return store


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=CHANGES, cut=st.none() | st.integers(0, 10_000))
def test_damaged_files_of_an_output_are_named(
    store: Store, changes: list[tuple[int, int]], cut: int | None
) -> None:
    """Bytes anywhere, most of them in the footer, which is most of a small file."""
    file = sorted(Path(store.root).glob("*.parquet"))[0]
    whole = file.read_bytes()
    content = bytearray(whole)
    for place, value in changes:
        content[-1 - place % len(content)] = value
    file.write_bytes(content[:cut])
    try:
        check_same_job(store, PRINT)
        assert read_ledger(store, "id").rows == len(IDS)
    except ValueError as error:
        said = str(error)
        assert "\n" not in said
        assert said.startswith(f"output is {store.uri!r}: ")
        assert file.name in said or "holds rows of another configuration: " in said
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize(
    ("column", "array", "words"),
    [
        ("id", pa.array([1.5] * 10), "ids are of type double"),
        ("id", pa.nulls(10, pa.string()), "ids must not be null"),
        ("status", pa.array(range(10)), "cannot be read"),
        ("row_key", pa.array(["x"] * 10), "its rows are not those that its name was made of|read"),
    ],
)
def test_columns_of_another_type_are_named(
    store: Store, column: str, array: pa.Array, words: str
) -> None:
    file = sorted(Path(store.root).glob("*.parquet"))[0]
    table = pq.read_table(file)
    pq.write_table(table.set_column(SCHEMA.get_field_index(column), column, array), file)
    with pytest.raises(ValueError, match=rf"its file {file.name} was changed .*({words})"):
        read_ledger(store, "id")


def test_a_completion_that_cannot_be_read_is_found_before_its_file_goes(store: Store) -> None:
    """Keys and footer are whole, so that only merging the files comes upon it."""
    file = sorted(Path(store.root).glob("*.parquet"))[0]
    content = bytearray(file.read_bytes())
    column = pq.read_metadata(file).row_group(0).column(SCHEMA.get_field_index("completion"))
    for place in range(column.data_page_offset, column.data_page_offset + 30):
        content[place] = 255
    file.write_bytes(content)
    before = store.names(".parquet")
    with pytest.raises((ValueError, PipelineError), match=rf"its file {file.name} was changed"):
        end_run(store, scan_of(IDS, ["p"] * len(IDS)), most_rows=100)
    assert set(before) <= set(store.names(".parquet"))
    assert not store.exists("_SUCCESS")


@pytest.mark.parametrize("error", [SLOW_DOWN, STALE])
def test_a_storage_that_refuses_for_a_while_has_changed_no_file(
    store: Store, error: OSError
) -> None:
    check_same_job(refusing(store.uri, error), PRINT)
    assert read_ledger(refusing(store.uri, error), "id").rows == len(IDS)
    name = store.names(".parquet")[0]
    assert read_columns(refusing(store.uri, error), name, ["id"]).num_rows == 10


def test_a_storage_that_stays_broken_has_changed_no_file_either(store: Store) -> None:
    broken = refusing(store.uri, times=10**9, seconds=0.01)
    for read in (
        lambda: check_same_job(broken, PRINT),
        lambda: read_ledger(broken, "id"),
        lambda: read_columns(broken, store.names(".parquet")[0], None),
    ):
        with pytest.raises(StorageError, match=r"reading .*\.parquet failed .* SLOW_DOWN"):
            read()


def test_an_error_of_storage_that_stays_is_the_files(store: Store) -> None:
    lasting = refusing(store.uri, OSError("Couldn't deserialize thrift"), times=10**9)
    with pytest.raises(ValueError, match=r"its file part-.* was changed by somebody else"):
        read_ledger(lasting, "id")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[1", b'{"a": [}', b"{}", b"[]", b"7"])
def test_a_manifest_that_is_none_is_named(store: Store, content: bytes) -> None:
    (Path(store.root) / MANIFEST).write_bytes(content)
    with pytest.raises(ValueError, match=r"its _admg/manifest.json was changed .*: delete it"):
        read_manifest(store.uri)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("fingerprint", [None, 7, []]),
        ("files", [None, {}, "text", ["text"], [{"name": "x"}], [{"name": 1, "rows": 1}]]),
        ("totals", [None, [], "text"]),
        ("errors_by_code", [None, [], "text"]),
        ("statistics", [None, [], "text"]),
        ("run", [None, [], "text"]),
    ],
)
def test_a_manifest_of_another_shape_is_named(
    store: Store, name: str, values: list[object]
) -> None:
    end_run(store, scan_of(IDS, ["p"] * len(IDS)), most_rows=100)
    manifest = read_manifest(store.uri)
    for value in values:
        (Path(store.root) / MANIFEST).write_text(json.dumps(manifest | {name: value}))
        with pytest.raises(ValueError, match=r"its _admg/manifest.json was changed .*: delete it"):
            read_manifest(store.uri)
