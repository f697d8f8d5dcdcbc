"""Fault 19: storage that throttles, is full or cannot be written."""

from __future__ import annotations

import errno
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.job
import pipeline.storage
from pipeline.errors import PipelineError, StorageError
from pipeline.heartbeat import HEARTBEAT
from pipeline.run import run
from pipeline.storage import Store, resolve
from tests.pipeline.faults.faulty import happens, times
from tests.pipeline.faults.oracle import check_output, config_of, prompts
from tests.pipeline.s3 import BUCKET, S3Server
from tests.pipeline.standin import StandIn


class FullDisk(Store):
    """A folder whose disk has no room for result files while there is a file `full` beside it.

    A double, for the tests' user may neither mount nor limit a disk.
    """

    def write_once(self, name: str, data: bytes | pa.Buffer) -> None:
        beside = Path(self.root).parent
        if name.endswith(".parquet"):
            if (beside / "full").exists():
                happens(str(beside), "refused", 999)
                raise OSError(errno.ENOSPC, "No space left on device", name)
            if (beside / "full for now").exists() and happens(str(beside), "refused", 5):
                raise OSError(errno.ENOSPC, "No space left on device", name)
        super().write_once(name, data)


class ReadOnly(Store):
    """A folder on a file system that is mounted read-only."""

    def write_once(self, name: str, data: bytes | pa.Buffer) -> None:
        if name != HEARTBEAT:  # which is tried again and again, and holds nothing up
            happens(str(Path(self.root).parent), "refused", 999)
        raise OSError(errno.EROFS, "Read-only file system", name)


@pytest.mark.usefixtures("ray_cluster")
def test_fault_19_a_full_disk_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.job, "Store", FullDisk)
    table = prompts(24)
    config = config_of(tmp_path, table)
    (tmp_path / "full for now").touch()
    run(config, engine_factory=StandIn())
    check_output(config, table)
    assert times(tmp_path, "refused") == 5


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
def test_fault_19_a_disk_that_stays_full_ends_the_run_and_it_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.job, "Store", FullDisk)
    table = prompts(40)
    config = config_of(tmp_path, table.slice(0, 16), storage_patience_seconds=0.5)
    assert run(config, engine_factory=StandIn()).rows_ok == 16
    pq.write_table(table.slice(16), tmp_path / "in" / "shard-1.parquet")
    (tmp_path / "full").touch()
    with pytest.raises(PipelineError) as caught:
        run(config, engine_factory=StandIn())
    said = str(caught.value)
    assert "failed" in said
    assert "No space left on device" in said
    assert "\n" not in said
    assert times(tmp_path, "refused") > 1

    (tmp_path / "full").unlink()
    again = StandIn(log=str(tmp_path / "log"))
    assert run(config, engine_factory=again).rows_reused == 16
    assert len(again.submitted()) == 24
    check_output(config, table)


@pytest.mark.usefixtures("ray_cluster")
def test_fault_19_a_read_only_output_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.job, "Store", ReadOnly)
    config = config_of(tmp_path, prompts(8))
    with pytest.raises(PipelineError, match=r"writing .* failed: .*Read-only file system"):
        run(config, engine_factory=StandIn(refuses_to_load=True))
    assert times(tmp_path, "refused") == 1


def test_fault_19_a_failed_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every further attempt on a full disk would make it fuller."""
    store = Store(str(tmp_path / "out"))
    store.prepare()

    def full(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(pipeline.storage.os, "fsync", full)
    with pytest.raises(StorageError, match="Input/output error"):
        store.write("part-1.parquet", b"content")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.slow
def test_fault_19_an_s3_that_throttles(s3: S3Server, tmp_path: Path) -> None:
    """Bursts are sat out; what lasts longer ends the run; the same command goes on."""
    table = prompts(24)
    filesystem, folder = resolve(f"s3://{BUCKET}/throttled/in")
    pq.write_table(table, f"{folder}/a.parquet", filesystem=filesystem)
    config = config_of(
        tmp_path,
        None,
        input=(f"s3://{BUCKET}/throttled/in",),
        output=f"s3://{BUCKET}/throttled/out",
        storage_patience_seconds=0.1,
    )
    s3.refuse(r"(PUT|POST) .*/out/(part|merged)-", 100_000)
    with pytest.raises(PipelineError) as caught:
        run(config, engine_factory=StandIn())
    assert "part-" in str(caught.value)
    assert len(s3.refused()) > 1
    assert not [name for name in s3.objects("throttled/out") if name.endswith(".parquet")]

    s3.refuse(r"\.parquet", 12)
    run(config, engine_factory=StandIn())
    assert len(s3.refused()) == 12
    s3.forgive()
    local = tmp_path / "copy"
    local.mkdir()
    for name, data in s3.objects("throttled/out").items():
        if name.endswith(".parquet"):
            (local / name).write_bytes(data)
    check_output(config_of(tmp_path, None, output=str(local)), table)
