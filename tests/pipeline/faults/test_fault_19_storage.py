"""Fault 19: storage that throttles, is full or cannot be written."""

from __future__ import annotations

import errno
import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.job
import pipeline.storage
from pipeline.errors import PipelineError, StorageError
from pipeline.file_systems import resolve
from pipeline.heartbeat import HEARTBEAT
from pipeline.lease import LeaseTimes
from pipeline.run import run
from pipeline.storage import Store
from tests.pipeline.faults.faulty import happens, times
from tests.pipeline.faults.killing import run_of
from tests.pipeline.faults.oracle import check_output, config_of, prompts
from tests.pipeline.faults.processes import ROOT
from tests.pipeline.s3 import BUCKET, S3Server
from tests.pipeline.standin import StandIn

OWN_MOUNTS = ["unshare", "--user", "--map-root-user", "--mount"]
# Every run is a process of its own, for a run that could not give its lease back still has it.
_ON_A_SMALL_DISK = """
import json, shutil, subprocess, sys
from pathlib import Path
import pyarrow.parquet as pq

disk = Path({disk!r})

def mount(options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(disk)], check=True)

def run():
    words = [sys.executable, "-c", {run!r}]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    files = [pq.read_metadata(file).num_rows for file in (disk / "out").glob("*.parquet")]
    found = dict(code=done.returncode, said=done.stdout + done.stderr, rows=sum(files))
    found["decoded"] = len(Path({log!r}).read_text().splitlines())
    print(json.dumps(found), flush=True)

mount("size=256k")
run()
mount("remount,size=64m")
run()
shutil.copytree(disk / "out", disk.parent / "copy")
"""


class FullDisk(Store):
    """A folder whose disk has no room for result files for a while."""

    def write_once(self, name: str, data: bytes | pa.Buffer) -> None:
        beside = Path(self.root).parent
        if name.endswith(".parquet") and happens(str(beside), "refused", 5):
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
    run(config, engine_factory=StandIn())
    check_output(config, table)
    assert times(tmp_path, "refused") == 5


def may_mount(folder: Path) -> bool:
    """Whether this user may mount a disk that only its own processes see."""
    words = [*OWN_MOUNTS, "mount", "-t", "tmpfs", "none", str(folder)]
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_fault_19_a_disk_that_is_full_ends_the_run_and_it_goes_on_later(tmp_path: Path) -> None:
    """A real one: whatever the run writes finds no room, its record, lease and heartbeat too."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not may_mount(disk):
        pytest.skip("no right to mount a disk")
    table = prompts(400)
    output = disk / "out"
    config = config_of(tmp_path, table, output=str(output), storage_patience_seconds=0.5)
    log = tmp_path / "log"
    job = (config, StandIn(log=str(log)), LeaseTimes(0.2, 2.0))
    (tmp_path / "job").write_bytes(pickle.dumps(job))
    code = _ON_A_SMALL_DISK.format(disk=str(disk), run=run_of(tmp_path / "job"), log=str(log))
    words = [*OWN_MOUNTS, sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    full, rest = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert full["code"] == 1
    assert "No space left on device" in full["said"]
    assert 0 < full["rows"] < 400
    assert rest["code"] == 0, rest["said"]
    # What was visible when the disk was full was not done again.
    assert rest["decoded"] - full["decoded"] == 400 - full["rows"]
    check_output(replace(config, output=str(tmp_path / "copy")), table)


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
