"""Input: every kind of path, and every mistake in one sentence that names the shard."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import PromptConfig, RunConfig
from pipeline.shards import find_shards
from pipeline.source import Source, open_source
from tests.pipeline.conftest import write_shards

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def config_of(*inputs: Any, **changes: Any) -> RunConfig:
    base = RunConfig(input=tuple(map(str, inputs)), output="out", model="model")
    return replace(base, **changes)


def rows_of(source: Source) -> pa.Table:
    tables = [t for chunk in source.chunks for t in chunk.read(source.schema)]
    return pa.concat_tables(tables) if tables else source.schema.empty_table()


def refusal(config: RunConfig) -> str:
    with pytest.raises(ValueError) as caught:
        open_source(config).scan(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with shards of odd names, deep ones, and files that are none."""
    root = tmp_path / "a b%20[c]"
    table = pa.table({"id": [1], "prompt": ["x"]})
    for name in ("1.parquet", "2#é.parquet", "deep/day=1/3.PARQUET", "part-4", "deep/5.pq"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, root / name)
    for name in ("_SUCCESS", ".6.parquet", "_admg/7.parquet", "notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"none")
    return root


def test_folders_are_read_with_their_subfolders(tree: Path) -> None:
    found = [os.path.relpath(s.path, tree) for s in find_shards([str(tree)])]
    assert sorted(found) == sorted(
        ["1.parquet", "2#é.parquet", "deep/5.pq", "deep/day=1/3.PARQUET", "part-4"]
    )


def test_files_globs_and_uris(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def names(*inputs: str) -> list[str]:
        return [Path(s.path).name for s in find_shards(inputs)]

    plain = tmp_path / "plain"
    write_shards(plain, [{"id": [1]}, {"id": [2]}, {"id": [3]}])
    pq.write_table(pa.table({"id": [4]}), plain / "deep.parquet")
    monkeypatch.chdir(plain)
    assert names("shard-0.parquet", str(plain / "shard-1.parquet")) == [
        "shard-0.parquet",
        "shard-1.parquet",
    ]
    assert names("shard-[0!]*") == ["shard-0.parquet"]
    assert names(f"{plain}/shard-[!0].parquet") == ["shard-1.parquet", "shard-2.parquet"]
    assert names(f"{tmp_path}/**/shard-?.parquet", f"{plain}/*.parquet") == [
        *("shard-0.parquet", "shard-1.parquet", "shard-2.parquet", "deep.parquet")
    ]
    assert names(plain.as_uri()) == names(str(plain))
    assert names(f"{plain.as_uri()}/shard-2*") == ["shard-2.parquet"]
    # A name that has a glob's letters and exists is that name.
    assert names(str(tree / "part-4")) == ["part-4"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("nowhere", "no such file or folder"),
        ("nowhere/*.parquet", "no Parquet file"),
        ("teleport://x/y", "no usable path"),
    ],
)
def test_inputs_that_lead_nowhere(given: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        find_shards([given])
    assert words in str(caught.value)
    assert given in str(caught.value)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no Parquet file"):
        find_shards([str(tmp_path)])


def test_types_that_differ_a_little_become_one(tmp_path: Path) -> None:
    shards = [
        pa.table({"id": pa.array([1], pa.int32()), "prompt": ["a"], "k": pa.nulls(1)}),
        pa.table({"id": [2], "prompt": pa.array(["b"], pa.large_string()), "k": [["x"]]}),
        pa.table(
            {"extra": [0], "prompt": pa.array(["c"]).dictionary_encode(), "id": [3], "k": [[]]}
        ),
        pa.table(
            {"id": pa.array([], pa.int64()), "prompt": pa.array([], pa.string()), "k": pa.nulls(0)}
        ),
    ]
    write_shards(tmp_path, shards)
    source = open_source(config_of(tmp_path, keep=("k",)))
    assert source.schema == pa.schema(
        [("id", pa.int64()), ("k", pa.list_(pa.string())), ("prompt", pa.string())]
    )
    assert rows_of(source).to_pydict() == {
        "id": [1, 2, 3],
        "k": [None, ["x"], []],
        "prompt": ["a", "b", "c"],
    }


def test_messages_and_template_columns_are_accepted(tmp_path: Path) -> None:
    messages = pa.array([[{"role": "user", "content": "hi"}]], MESSAGES)
    write_shards(tmp_path, [pa.table({"id": ["a"], "prompt": messages, "n": [1.5], "d": [True]})])
    open_source(config_of(tmp_path, prompt=PromptConfig(mode="chat")))
    template = PromptConfig(mode="template", template="{n} {d} {id}")
    assert rows_of(open_source(config_of(tmp_path, prompt=template))).num_rows == 1


@pytest.mark.parametrize(
    ("columns", "changes", "words"),
    [
        ({"prompt": ["x"]}, {}, "has no column 'id'; its columns: prompt"),
        ({"id": [1]}, {}, "has no column 'prompt'; its columns: id"),
        ({"id": [1], "prompt": ["x"]}, {"keep": ("k",)}, "has no column 'k'"),
        ({"id": [1.5], "prompt": ["x"]}, {}, "of type double"),
        ({"id": [b"1"], "prompt": ["x"]}, {}, "of type binary"),
        ({"id": [1], "prompt": [1]}, {}, "of type int64"),
        ({"id": [1], "prompt": [["x"]]}, {}, "it must hold text"),
        ({"id": [1], "prompt": [["x"]]}, {"prompt": PromptConfig(mode="chat")}, "{role, content}"),
        (
            {"id": [1], "prompt": [["x"]]},
            {"prompt": PromptConfig(mode="template", template="{prompt}")},
            "to fill the template's field",
        ),
        (
            {"id": [1], "prompt": ["x"]},
            {"prompt": PromptConfig(mode="template", template="{title}")},
            "has no column 'title'",
        ),
        ({"id": [1, None], "prompt": ["x", "y"]}, {}, "has 1 null values"),
        ({"id": [1, 2, 1], "prompt": ["x", "y", "z"]}, {}, "1 ids more than once, 1 for one"),
        ({"id": ["a", "a"], "prompt": ["x", "x"]}, {}, "1 ids more than once, 'a' for one"),
    ],
)
def test_columns_that_do_not_fit_are_named(
    tmp_path: Path, columns: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    (path,) = write_shards(tmp_path, [columns])
    said = refusal(config_of(tmp_path, **changes))
    assert words in said
    assert str(path) in said


def test_ids_are_unique_over_shards(tmp_path: Path) -> None:
    rows = [{"id": [1, 2], "prompt": ["x", "x"]}, {"id": [3, 2], "prompt": ["x", "y"]}]
    paths = write_shards(tmp_path, rows)
    said = refusal(config_of(tmp_path))
    assert "1 ids more than once, 2 for one" in said
    assert all(str(path) in said for path in paths)


def test_shards_that_disagree_are_named(tmp_path: Path) -> None:
    shards = [{"id": [1], "prompt": ["x"]}, {"id": ["2"], "prompt": ["x"]}]
    paths = write_shards(tmp_path, shards)
    said = refusal(config_of(tmp_path))
    assert f"the column 'id' is of type string in {paths[1]} but int64 before it" in said


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays(
        [pa.array([1]), pa.array(["x"]), pa.array(["y"])], ["id", "prompt", "prompt"]
    )
    write_shards(tmp_path, [twice])
    assert "more than one column 'prompt'" in refusal(config_of(tmp_path))


def test_ids_that_are_not_unicode(tmp_path: Path) -> None:
    bad = pa.array([b"\xff"]).view(pa.string())
    write_shards(tmp_path, [pa.table({"id": bad, "prompt": ["x"]})])
    assert "not UTF-8" in refusal(config_of(tmp_path))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_shards_are_named(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever bytes are changed or cut off: the rows as they were, or one clear sentence."""
    folder = tmp_path_factory.mktemp("damaged")
    ids = list(range(200))
    (path,) = write_shards(folder, [{"id": ids, "prompt": [f"prompt {i}" for i in ids]}])
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[place:]
    else:
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    config = config_of(folder)
    try:
        scan = open_source(config).scan(config)
    except ValueError as error:
        assert "\n" not in str(error)
        assert str(path) in str(error)
    else:
        assert sum(len(s.keys) for s in scan.chunks) <= 200


def test_a_shard_that_vanishes_is_named(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, [{"id": [1], "prompt": ["x"]}])
    config = config_of(tmp_path)
    source = open_source(config)
    path.unlink()
    with pytest.raises(ValueError, match=r"cannot be read as Parquet") as caught:
        source.scan(config)
    assert str(path) in str(caught.value)


def test_large_shards_are_read_in_pieces(tmp_path: Path) -> None:
    table = pa.table({"id": range(50_000), "prompt": ["x"] * 50_000})
    pq.write_table(table, tmp_path / "big.parquet", row_group_size=1_000)
    source = open_source(config_of(tmp_path))
    assert [c.rows for c in source.chunks] == [17_000, 17_000, 16_000]
    assert rows_of(source)["id"].to_pylist() == list(range(50_000))
