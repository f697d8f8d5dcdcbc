"""The types that users' tables have: ids, prompts, messages, kept columns, partitions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from admg.config import EngineConfig, SamplingParams
from pipeline.config import PromptConfig, RunConfig
from pipeline.run import run
from pipeline.source import open_source
from tests.pipeline.conftest import write_shards
from tests.pipeline.standin import StandIn, expected

MAX_TOKENS = 8
TEXTS = ["first text", "", "third text"]
MESSAGES = [[{"role": "user", "content": text, "name": None}] for text in TEXTS]


def config_of(tmp_path: Path, **changes: Any) -> RunConfig:
    return RunConfig(
        **{
            "input": (str(tmp_path / "in"),),
            "output": str(tmp_path / "out"),
            "model": "stand-in",
            "sampling": SamplingParams(max_tokens=MAX_TOKENS),
            "engine": EngineConfig(max_num_seqs=8),
            "rows_per_block": 8,
            **changes,
        }
    )


def keys_of(tmp_path: Path, table: pa.Table, **changes: Any) -> tuple[pa.Schema, list[list[int]]]:
    write_shards(tmp_path / "in", [table])
    config = config_of(tmp_path, **changes)
    source = open_source(config)
    (part,) = source.scan(config).chunks
    return source.schema, part.keys.tolist()


@pytest.mark.parametrize(
    "kind",
    [pa.int8(), pa.int32(), pa.uint32(), pa.int64(), pa.dictionary(pa.int8(), pa.int32())],
    ids=str,
)
def test_integer_ids_of_every_width_are_the_same_ids(tmp_path: Path, kind: pa.DataType) -> None:
    prompts = pa.array(TEXTS)
    plain = keys_of(tmp_path / "plain", pa.table({"id": [7, 8, 9], "prompt": prompts}))
    ids = pa.array([7, 8, 9], getattr(kind, "value_type", kind))
    ids = ids.dictionary_encode() if pa.types.is_dictionary(kind) else ids
    assert keys_of(tmp_path, pa.table({"id": ids, "prompt": prompts})) == plain


def test_the_largest_unsigned_ids(tmp_path: Path) -> None:
    ids = pa.array([0, 2**63, 2**64 - 1], pa.uint64())
    schema, keys = keys_of(tmp_path, pa.table({"id": ids, "prompt": TEXTS}))
    assert schema.field("id").type == pa.uint64()
    assert len({tuple(key) for key in keys}) == 3


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.large_string()),
    ],
    ids=str,
)
def test_text_is_text_however_it_is_encoded(tmp_path: Path, kind: pa.DataType) -> None:
    ids, texts = pa.array(["a", "b", "c"]), pa.array(TEXTS)
    plain = keys_of(tmp_path / "plain", pa.table({"id": ids, "prompt": texts}))

    def encoded(array: pa.Array) -> pa.Array:
        if pa.types.is_dictionary(kind):
            return array.cast(kind.value_type).dictionary_encode()
        return array.cast(kind)

    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    table = pa.table({"id": ids if binary else encoded(ids), "prompt": encoded(texts)})
    assert keys_of(tmp_path, table) == plain


def test_shards_that_encode_text_in_different_ways_go_together(tmp_path: Path) -> None:
    texts = [
        pa.array(["a"]).dictionary_encode(),
        pa.array(["b"], pa.large_string()),
        pa.array([b"\xff"], pa.binary()),
    ]
    write_shards(tmp_path / "in", [{"id": [i], "prompt": text} for i, text in enumerate(texts)])
    config = config_of(tmp_path)
    scan = open_source(config).scan(config)
    assert scan.rows == 3


@pytest.mark.usefixtures("ray_cluster")
def test_partitions_bytes_messages_and_parameters_in_one_run(tmp_path: Path) -> None:
    ids = [1, 2, 3]
    for day, shift in (("2026-11-20", 0), ("__HIVE_DEFAULT_PARTITION__", 10), ("a%2Fb", 20)):
        table = {"id": [i + shift for i in ids], "chat": MESSAGES, "max_tokens": [2, None, -1]}
        write_shards(tmp_path / "in" / f"date={day}" / "kind=x", [table])
    config = config_of(
        tmp_path,
        prompt=PromptConfig(column="chat", mode="chat"),
        keep=("date", "kind"),
        row_parameters=("max_tokens",),
    )
    report = run(config, engine_factory=StandIn())
    assert report.errors_by_code == {"prompt_empty": 3, "bad_parameter": 3}
    rows = {row["id"]: row for row in pq.read_table(config.output).to_pylist()}
    assert {i: rows[i]["date"] for i in (1, 11, 21)} == {1: "2026-11-20", 11: None, 21: "a/b"}
    assert {row["kind"] for row in rows.values()} == {"x"}
    text = f"<user>{TEXTS[0]}<assistant>"
    assert rows[1]["completion"] == expected(text, 2, special=False)
    assert rows[3]["error_message"] == "max_tokens is -1: it must be at least 1"


@pytest.mark.usefixtures("ray_cluster")
def test_bytes_that_are_no_text_leave_the_output_readable(tmp_path: Path) -> None:
    prompts = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary())
    notes = pa.array([b"n\xff", b"n", None], pa.binary()).view(pa.string())
    write_shards(tmp_path / "in", [pa.table({"id": [1, 2, 3], "prompt": prompts, "n": notes})])
    config = config_of(tmp_path, keep=("n", "prompt"))
    report = run(config, engine_factory=StandIn())
    assert report.errors_by_code == {"invalid_unicode": 1}
    rows = {row["id"]: row for row in pq.read_table(config.output).to_pylist()}
    assert rows[1]["completion"] == expected("good", MAX_TOKENS)
    assert [rows[i]["n"] for i in (1, 2, 3)] == ["n\ufffd", "n", None]
    assert rows[2]["prompt"] == "\ufffd\ufffd"


@pytest.mark.usefixtures("ray_cluster")
def test_a_later_shard_of_other_types_changes_no_row_before_it(tmp_path: Path) -> None:
    note = pa.array(["a"], pa.string_view())
    shards = [{"id": [1], "n": [7], "k": note}, {"id": [2], "n": [7.5], "k": ["b"]}]
    prompt = PromptConfig(mode="template", template="{n}")
    config = config_of(tmp_path, prompt=prompt, keep=("k",))
    write_shards(tmp_path / "in", shards[:1])
    assert run(config, engine_factory=StandIn()).rows_ok == 1
    write_shards(tmp_path / "in", shards)
    report = run(config, engine_factory=StandIn())
    assert (report.rows_ok, report.rows_reused) == (2, 1)
    write_shards(tmp_path / "in" / "more", [{"id": [3], "n": [True], "k": ["c"]}])
    fresh = replace(config, output=str(tmp_path / "fresh"))
    assert run(fresh, engine_factory=StandIn()).rows_ok == 3
    rows = {row["id"]: row for row in pq.read_table(fresh.output).to_pylist()}
    assert [rows[i]["k"] for i in (1, 2, 3)] == ["a", "b", "c"]
    texts = [expected(text, MAX_TOKENS) for text in ("7", "7.5", "True")]
    assert [rows[i]["completion"] for i in (1, 2, 3)] == texts
