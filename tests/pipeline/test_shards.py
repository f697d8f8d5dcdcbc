"""Which files an input means: links, globs of folders; and shards that say what is not so."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import RunConfig
from pipeline.shards import find_shards
from pipeline.source import open_source
from tests.pipeline.conftest import write_shards

ROW = {"id": [1], "prompt": ["x"]}


def config_of(folder: Path, keep: tuple[str, ...] = ()) -> RunConfig:
    return RunConfig(input=(str(folder),), output="out", model="model", keep=keep)


def found(root: Path, *inputs: str) -> list[str]:
    return [os.path.relpath(s.path, root) for s in find_shards([f"{root}/{i}" for i in inputs])]


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, [ROW])
    for name, target in (("gone.parquet", "nowhere"), ("self.parquet", "self.parquet")):
        (tmp_path / name).symlink_to(target)
        for given in (tmp_path, tmp_path / "*.parquet"):
            with pytest.raises(ValueError, match=rf"{name} cannot be read"):
                open_source(config_of(given))
        (tmp_path / name).unlink()
    (tmp_path / ".hidden").symlink_to("nowhere")
    (tmp_path / "notes.txt").symlink_to("nowhere")
    assert found(tmp_path, "") == ["shard-0.parquet"]


def test_links_in_circles_and_to_the_same_file_are_one_shard(tmp_path: Path) -> None:
    root = tmp_path / "in"
    write_shards(root / "date=2", [ROW])
    (root / "circle").symlink_to(".")
    (root / "other").symlink_to(root)
    (root / "current").symlink_to("date=2")
    (root / "_old").symlink_to("date=2")
    (root / "a.parquet").symlink_to("date=2/shard-0.parquet")
    (tmp_path / "link").symlink_to("in")
    assert found(tmp_path, "in", "link", "in/a.parquet") == ["in/date=2/shard-0.parquet"]


def test_visible_links_to_hidden_files_are_shards(tmp_path: Path) -> None:
    """So are files of Kubernetes volumes and of the Hub's cache laid out."""
    write_shards(tmp_path / ".data", [ROW])
    (tmp_path / "_first.parquet").symlink_to(".data/shard-0.parquet")
    (tmp_path / "a.parquet").symlink_to(".data/shard-0.parquet")
    assert found(tmp_path, "") == ["a.parquet"]


def test_a_glob_of_folders_means_their_shards(tmp_path: Path) -> None:
    for day in (1, 2, 13):
        write_shards(tmp_path / f"date={day}" / "deep", [ROW])
    (tmp_path / "date=1" / "notes.txt").write_text("none")
    write_shards(tmp_path / "date=1" / "_admg", [ROW])
    first, second = (f"date={day}/deep/shard-0.parquet" for day in (1, 2))
    assert found(tmp_path, "date=?") == [first, second]
    assert found(tmp_path, "date=?/") == [first, second]
    assert found(tmp_path, "date=[2]/d*") == [second]
    assert len(found(tmp_path, "*")) == 3


def test_a_glob_that_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"input is '.*x\[z-a\].parquet': it is no glob"):
        find_shards([f"{tmp_path}/x[z-a].parquet"])


def test_a_home_that_nobody_has_is_said() -> None:
    with pytest.raises(ValueError, match="'~nobodyxyz/x' is no usable path: there is no such user"):
        find_shards(["~nobodyxyz/x"])


def test_pages_with_a_wrong_checksum_are_named(tmp_path: Path) -> None:
    table = pa.table({"id": [1, 2], "prompt": ["the one prompt", "another"]})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"the one prompt", b"the own prompt"))
    assert path.read_bytes() != content
    config = config_of(tmp_path)
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read as Parquet: .*checksum"):
        open_source(config).scan(config)


def test_old_timestamps_keep_their_years(tmp_path: Path) -> None:
    far = datetime(9999, 12, 31)
    table = pa.table(ROW | {"at": pa.array([far], pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)
    source = open_source(config_of(tmp_path, keep=("at",)))
    assert source.schema.field("at").type == pa.timestamp("us")
    (chunk,) = source.chunks
    assert [t["at"].to_pylist() for t in chunk.read(source.schema)] == [[far]]


def test_a_footer_that_counts_other_rows_is_named(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, [{"id": range(50), "prompt": ["x"] * 50}])
    content = path.read_bytes()
    counted = b"\x16\x64"  # 50, as Thrift's compact protocol writes it: a zigzag i64 field
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    config = config_of(tmp_path)
    said = []
    place = content.find(counted, footer)
    while place >= 0:
        path.write_bytes(content[:place] + b"\x16\x66" + content[place + 2 :])
        try:
            open_source(config).scan(config)
        except ValueError as error:
            said.append(str(error))
        place = content.find(counted, place + 1)
    assert f"the input shard {path} is corrupt: its footer counts 51 rows where 50" in " ".join(
        said
    )
