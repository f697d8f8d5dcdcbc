"""What remains of the times of commits when the files that had them are merged."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.commit_times import COMMITS, note_commits, noted_commits
from pipeline.fingerprint import Fingerprint
from pipeline.names import FileName
from pipeline.schema import DRAFTER_TOKENS
from pipeline.storage import Store


def block(folder: Path, number: int, merged: bool = False) -> str:
    """A block's file of two rows, committed `number` seconds after some moment."""
    keys = np.array([[number, 0], [number, 1]], np.uint64)
    name = str(FileName.of(Fingerprint({}), keys, np.array([True, True]), 1, merged))
    sources = [[{"source": "admg", "tokens": number}], [{"source": "ngram", "tokens": 1}]]
    table = pa.table(
        {
            "completion_tokens": pa.array([number, None], pa.int64()),
            "drafter_tokens": pa.array(sources, DRAFTER_TOKENS),
        }
    )
    pq.write_table(table, folder / name)
    os.utime(folder / name, (1_000 + number, 1_000 + number))
    return name


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "_admg").mkdir()
    store = Store(str(tmp_path))
    store.prepare()
    return store


def test_times_and_tokens_outlive_the_files(store: Store, tmp_path: Path) -> None:
    names = [block(tmp_path, 1), block(tmp_path, 2), block(tmp_path, 3, merged=True)]
    note_commits(store, names[:1])
    note_commits(store, names)  # as after a crash: what is known is not added again
    for name in names:
        (tmp_path / name).unlink()
    lines = noted_commits(store).to_pylist()
    assert [line["seconds"] for line in lines] == [1_001, 1_002]
    assert [line["completion_tokens"] for line in lines] == [1, 2]
    assert [line["rows"] for line in lines] == [2, 2]
    assert lines[1]["drafter_tokens"] == [
        {"source": "admg", "tokens": 2},
        {"source": "ngram", "tokens": 1},
    ]


def test_what_is_damaged_is_begun_anew(store: Store, tmp_path: Path) -> None:
    (tmp_path / COMMITS).write_bytes(b"no such thing")
    assert noted_commits(store).num_rows == 0
    note_commits(store, [block(tmp_path, 5)])
    assert noted_commits(store)["seconds"].to_pylist() == [1_005]
