"""An S3 server in a process of its own: input, output, state and resume, by the usual variables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from admg.config import EngineConfig, SamplingParams
from pipeline.config import RunConfig
from pipeline.errors import StorageError
from pipeline.file_systems import resolve
from pipeline.manifest import read_manifest
from pipeline.retry import Patience
from pipeline.run import run
from pipeline.shards import find_shards
from pipeline.storage import Store
from tests.pipeline.s3 import BUCKET, S3Server
from tests.pipeline.standin import StandIn, expected

MAX_TOKENS = 12


def config_of(prefix: str, **changes: Any) -> RunConfig:
    base = RunConfig(
        input=(f"s3://{BUCKET}/{prefix}/in",),
        output=f"s3://{BUCKET}/{prefix}/out",
        model="stand-in",
        sampling=SamplingParams(max_tokens=MAX_TOKENS),
        engine=EngineConfig(max_num_seqs=8),
        rows_per_block=8,
    )
    return replace(base, **changes)


def put_shard(prefix: str, name: str, ids: Iterable[int]) -> None:
    table = pa.table({"id": ids, "prompt": [f"prompt of {i}" for i in ids]})
    filesystem, path = resolve(f"s3://{BUCKET}/{prefix}/in")
    pq.write_table(table, f"{path}/{name}", filesystem=filesystem)


def assert_decoded(config: RunConfig, ids: Iterable[int]) -> None:
    filesystem, path = resolve(config.output)
    rows = pq.read_table(path, filesystem=filesystem).to_pylist()
    assert sorted(row["id"] for row in rows) == list(ids)
    for row in rows:
        assert row["completion"] == expected(f"prompt of {row['id']}", MAX_TOKENS)


def test_stores_and_shards(s3: S3Server) -> None:
    put_shard("store", "day=1/a.parquet", range(3))
    put_shard("store", "b.parquet", range(3))
    inputs = [f"s3://{BUCKET}/store/in", f"s3://{BUCKET}/store/in/*/a*"]
    assert [s.path for s in find_shards(inputs)] == [
        f"{BUCKET}/store/in/b.parquet",
        f"{BUCKET}/store/in/day=1/a.parquet",
    ]
    with pytest.raises(ValueError, match="no such file or folder"):
        find_shards([f"s3://{BUCKET}/nowhere"])
    store = Store(f"s3://{BUCKET}/store/out")
    assert store.names("") == []
    store.prepare()
    store.write("part-1.parquet", b"one")
    store.write("part-1.parquet", b"two")
    assert store.read("part-1.parquet") == b"two"
    assert (store.exists("part-1.parquet"), store.exists("part-2.parquet")) == (True, False)
    store.delete("part-1.parquet")
    store.delete("part-1.parquet")
    assert store.names("") == []


def test_bursts_of_refusals_are_sat_out(s3: S3Server) -> None:
    store = Store(f"s3://{BUCKET}/burst", patience=Patience(60, first=0.01, longest=0.05))
    s3.refuse(".*", 40)
    store.write("x", b"content")
    assert store.names("") == ["x"]
    assert store.read("x") == b"content"
    assert store.exists("x")
    assert len(s3.refused()) == 40
    s3.refuse("DELETE", 5)
    store.delete("x")
    assert len(s3.refused()) == 5
    assert not store.exists("x")


@pytest.mark.parametrize("size", [0, 7, 10 * 2**20 - 1])
def test_a_small_file_is_one_put(s3: S3Server, size: int) -> None:
    """Several requests would leave an upload begun for good where the writer is killed."""
    store = Store(f"s3://{BUCKET}/one-put", patience=Patience(0))
    s3.refuse("POST", 100_000)
    store.write("x", b"x" * size)
    assert s3.refused() == []
    assert store.read("x") == b"x" * size


def test_a_large_write_that_fails_is_told_and_shows_nothing(s3: S3Server) -> None:
    store = Store(f"s3://{BUCKET}/failing", patience=Patience(0))
    content = b"x" * (11 * 2**20)
    s3.refuse("POST .*/x", 100_000)
    with pytest.raises(StorageError, match=r"writing .*/x failed .*SLOW_DOWN"):
        store.write("x", content)
    s3.forgive()
    assert not store.exists("x")
    store.write("x", content)
    assert store.read("x") == content


def test_a_bucket_that_is_not_there_is_told(s3: S3Server) -> None:
    with pytest.raises(StorageError, match="NO_SUCH_BUCKET"):
        Store("s3://nowhere/x").write("x", b"content")


def test_globs_and_odd_names_in_uris(s3: S3Server) -> None:
    put_shard("odd", "day=1/a b#1.parquet", range(3))
    put_shard("odd", "day=2/c é.parquet", range(3))
    put_shard("odd", "day=3/d?.parquet", range(3))
    parameters = f"?endpoint_override=127.0.0.1:{s3.port}&scheme=http"

    def names(below: str) -> list[str]:
        found = find_shards([f"s3://{BUCKET}/odd/in/{below}"])
        return [shard.path.removeprefix(f"{BUCKET}/odd/in/") for shard in found]

    for more in ("", parameters):
        assert names(f"day=?/?[ ]*{more}") == ["day=1/a b#1.parquet", "day=2/c é.parquet"]
        assert names(f"day=1/a b#1.parquet{more}") == ["day=1/a b#1.parquet"]
        assert names(f"day=1/a%20b%231.parquet{more}") == ["day=1/a b#1.parquet"]
        assert names(f"day=3/d?.parquet{more}") == ["day=3/d?.parquet"]
        assert names(f"day=[12]{more}") == ["day=1/a b#1.parquet", "day=2/c é.parquet"]
    with pytest.raises(ValueError, match="endpoint_overide"):
        names("*?endpoint_overide=x")


def test_one_bucket_on_two_storages_is_two_inputs(s3: S3Server) -> None:
    put_shard("two", "a.parquet", range(3))
    one = f"s3://{BUCKET}/two/in"
    other = f"{one}?endpoint_override=127.0.0.1:{s3.port}&scheme=http"
    assert [s.uri for s in find_shards([one, other, f"{one}/*"])] == [one, other]


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_on_s3_and_its_resume(s3: S3Server, tmp_path: Path) -> None:
    put_shard("whole", "a.parquet", range(20))
    put_shard("whole", "b.parquet", range(20, 40))
    config = config_of("whole")
    report = run(config, engine_factory=StandIn())
    assert (report.rows_ok, report.rows_reused) == (40, 0)
    assert_decoded(config, range(40))
    assert {"_SUCCESS", "_admg/manifest.json"} <= set(s3.objects("whole/out"))
    assert read_manifest(config.output)["totals"]["rows"] == 40

    put_shard("whole", "c.parquet", range(40, 50))
    again = StandIn(log=str(tmp_path / "log"))
    report = run(config, engine_factory=again)
    assert (report.rows_ok, report.rows_reused) == (50, 40)
    assert len(again.submitted()) == 10
    assert_decoded(config, range(50))
