"""Faults 17 and 18: shards that are new, empty, broken or gone."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import PipelineError
from pipeline.manifest import read_manifest
from pipeline.progress import Progress
from pipeline.run import run
from tests.pipeline.faults.oracle import check_output, config_of, prompts
from tests.pipeline.standin import StandIn

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_fault_17_new_rows_only_and_nothing_new_is_a_success(tmp_path: Path) -> None:
    table = prompts(30)
    config = config_of(tmp_path, table.slice(0, 20), shards=2)
    folder = tmp_path / "in"
    pq.write_table(table.slice(0, 0), folder / "no rows.parquet")
    assert run(config, engine_factory=StandIn()).rows_ok == 20
    again = run(config, engine_factory=StandIn(refuses_to_load=True))
    assert (again.rows_ok, again.rows_reused) == (20, 20)

    pq.write_table(table.slice(20), folder / "shard-9.parquet")
    second = StandIn(log=str(tmp_path / "log"))
    report = run(config, engine_factory=second)
    assert (report.rows_ok, report.rows_reused) == (30, 20)
    assert len(second.submitted()) == 10
    check_output(config, table)


def test_fault_17_an_input_without_rows_is_done(tmp_path: Path) -> None:
    config = config_of(tmp_path, prompts(0))
    report = run(config, engine_factory=StandIn(refuses_to_load=True))
    assert (report.rows_total, report.rows_ok) == (0, 0)
    assert (Path(config.output) / "_SUCCESS").exists()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def corrupt(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[40:140] = bytes(100)
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_type(path: Path) -> None:
    pq.write_table(pa.table({"id": [7], "prompt": [1.5]}), path)


def no_ids(path: Path) -> None:
    pq.write_table(pa.table({"id": pa.array([None], pa.int64()), "prompt": ["x"]}), path)


BREAKS = [truncate, corrupt, empty, other_type, no_ids]


@pytest.mark.parametrize("damage", BREAKS)
def test_fault_18_a_bad_shard_is_named_before_anything_starts(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    config = config_of(tmp_path, prompts(30), shards=3)
    damage(tmp_path / "in" / "shard-1.parquet")
    with pytest.raises(ValueError) as caught:
        run(config, engine_factory=StandIn(refuses_to_load=True))
    assert str(tmp_path / "in" / "shard-1.parquet") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fault_18_the_others_are_done_where_bad_shards_are_allowed(tmp_path: Path) -> None:
    size, count = 10, len(BREAKS) + 2
    table = prompts(size * count)
    config = config_of(tmp_path, table, shards=count, allow_bad_shards=True)
    for i, damage in enumerate(BREAKS, start=1):
        damage(tmp_path / "in" / f"shard-{i}.parquet")
    report = run(config, engine_factory=StandIn())
    rest = pa.concat_tables([table.slice(0, size), table.slice((count - 1) * size)])
    check_output(config, rest)
    assert report.rows_total == 2 * size
    assert len(report.bad_shards) == len(BREAKS)
    for i, said in enumerate(sorted(report.bad_shards, key=lambda s: s[s.index("shard-") :]), 1):
        assert f"shard-{i}.parquet" in said
    assert len(read_manifest(config.output)["run"]["bad_shards"]) == len(BREAKS)

    for i in range(1, count - 1):  # repaired, they are decoded; what is done is not done again
        pq.write_table(table.slice(size * i, size), tmp_path / "in" / f"shard-{i}.parquet")
    report = run(replace(config, allow_bad_shards=False), engine_factory=StandIn())
    assert (report.rows_reused, report.bad_shards) == (2 * size, ())
    check_output(config, table)
    assert read_manifest(config.output)["run"]["bad_shards"] == []


def test_fault_18_no_shard_that_can_be_used(tmp_path: Path) -> None:
    config = config_of(tmp_path, prompts(10), allow_bad_shards=True)
    truncate(tmp_path / "in" / "shard-0.parquet")
    with pytest.raises(ValueError, match=r"no shard can be used: the input shard .*shard-0"):
        run(config, engine_factory=StandIn(refuses_to_load=True))


@pytest.mark.parametrize("allowed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_fault_18_a_shard_that_vanishes_between_scan_and_read(
    tmp_path: Path, allowed: bool
) -> None:
    table = prompts(30)
    config = config_of(tmp_path, table, shards=3, allow_bad_shards=allowed)
    path = tmp_path / "in" / "shard-1.parquet"

    def vanish(progress: Progress) -> None:
        if progress.phase == "starting":
            path.unlink(missing_ok=True)

    if allowed:
        report = run(config, engine_factory=StandIn(), on_progress=vanish)
        assert [str(path) in said for said in report.bad_shards] == [True]
        check_output(config, pa.concat_tables([table.slice(0, 10), table.slice(20)]))
    else:
        with pytest.raises(PipelineError) as caught:
            run(config, engine_factory=StandIn(), on_progress=vanish)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    pq.write_table(table.slice(10, 10), path)
    run(config, engine_factory=StandIn())
    check_output(config, table)
