"""Reports of outputs whose storage fails."""

from __future__ import annotations

import errno
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.report.chunks import opened
from pipeline.errors import StorageError
from tests.pipeline.refusing import SLOW_DOWN, refusing


@pytest.fixture
def output(tmp_path: Path) -> str:
    pq.write_table(pa.table({"id": [1, 2]}), tmp_path / "part.parquet")
    return str(tmp_path)


def test_a_storage_that_refuses_for_a_moment_is_asked_again(output: str) -> None:
    with opened(refusing(output), "part.parquet", ["id"]) as file:
        assert file.metadata.num_rows == 2


@pytest.mark.parametrize("inside", [False, True])
def test_one_that_goes_on_refusing_is_no_damage(output: str, inside: bool) -> None:
    store = refusing(output, times=0 if inside else 99, seconds=0.01)
    with (
        pytest.raises(StorageError, match=r"reading .*part\.parquet failed.*SLOW_DOWN"),
        opened(store, "part.parquet", ["id"]),
    ):
        raise SLOW_DOWN


def test_a_broken_disk_is(output: str) -> None:
    broken = OSError(errno.EIO, "Input/output error")
    with (
        pytest.raises(ValueError, match=r"part\.parquet cannot be read: .*Input/output error"),
        opened(refusing(output, broken, 99), "part.parquet", ["id"]),
    ):
        pass
