"""Whole runs with real Ray and real Parquet; a stand-in decodes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from admg.checkpoint import load_dtype
from admg.config import DraftConfig, EngineConfig, SamplingParams
from pipeline.config import PromptConfig, RunConfig
from pipeline.errors import PipelineError
from pipeline.heartbeat import read_heartbeat
from pipeline.manifest import read_manifest
from pipeline.progress import Progress
from pipeline.run import RunReport, run
from pipeline.storage import Store
from tests.pipeline.conftest import write_shards
from tests.pipeline.standin import REFUSED, StandIn, expected

MAX_TOKENS = 12
pytestmark = pytest.mark.usefixtures("ray_cluster")


def config_of(tmp_path: Path, **changes: Any) -> RunConfig:
    base = RunConfig(
        input=(str(tmp_path / "in"),),
        output=str(tmp_path / "out"),
        model="stand-in",
        sampling=SamplingParams(max_tokens=MAX_TOKENS),
        engine=EngineConfig(max_num_seqs=8),
        rows_per_block=8,
    )
    return replace(base, **changes)


def prompts(start: int, end: int) -> pa.Table:
    ids = [f"r{i:03}" for i in range(start, end)]
    return pa.table({"id": ids, "prompt": [f"prompt of {i}" for i in ids], "n": range(start, end)})


def rows_of(config: RunConfig) -> dict[str | int, dict[str, Any]]:
    """Output rows by id; every id once."""
    table = pq.read_table(config.output)
    rows = {row["id"]: row for row in table.to_pylist()}
    assert len(rows) == table.num_rows, Counter(table["id"].to_pylist()).most_common(3)
    return rows


def assert_decoded(config: RunConfig, ids: Sequence[str]) -> None:
    """The output holds exactly these ids, each with the text that its prompt must give."""
    rows = rows_of(config)
    assert sorted(rows) == sorted(ids)
    assert {i: r["completion"] for i, r in rows.items()} == {
        i: expected(f"prompt of {i}", MAX_TOKENS) for i in ids
    }


def test_small_calls_are_committed_together(tmp_path: Path) -> None:
    write_shards(tmp_path / "in", [prompts(0, 17), prompts(17, 50)])
    engine = EngineConfig(max_num_seqs=4)
    config = config_of(tmp_path, engine=engine, rows_per_block=20, actors=2, max_rows_per_file=0)
    run(config, engine_factory=StandIn())
    assert_decoded(config, prompts(0, 50)["id"].to_pylist())
    files = [pq.read_metadata(f).num_rows for f in Path(config.output).glob("*.parquet")]
    assert sorted(f // 20 for f in files) == [0, 1, 1], files  # whole calls of 4, so one may be 23


def test_good_and_bad_rows_end_to_end(tmp_path: Path) -> None:
    bad: dict[str, list[Any]] = {
        "id": ["null", "empty", "long", "refused", "bytes"],
        "prompt": [None, b"", b"x" * 999, REFUSED.encode(), b"\xff"],
        "n": [None] * 5,
    }
    shard = pa.table(
        {
            "id": bad["id"],
            "prompt": pa.array(bad["prompt"], pa.binary()).view(pa.string()),
            "n": pa.array(bad["n"], pa.int64()),
        }
    )
    empty = prompts(0, 0).cast(
        pa.schema([("id", pa.string()), ("prompt", pa.string()), ("n", pa.int64())])
    )
    write_shards(tmp_path / "in", [prompts(0, 20), shard, empty, prompts(20, 30)])
    config = config_of(tmp_path, keep=("n",))
    seen: list[Progress] = []
    report = run(config, engine_factory=StandIn(), on_progress=seen.append)

    codes = {
        "prompt_null": 1,
        "prompt_empty": 1,
        "prompt_too_long": 1,
        "model_output_invalid": 1,
        "invalid_unicode": 1,
    }
    assert (report.rows_total, report.rows_ok, report.rows_error) == (35, 30, 5)
    assert report.errors_by_code == codes
    assert (report.mean_acceptance_length, report.draft_acceptance_rate) == (2.0, 0.25)
    assert (report.speedup, report.speedup_end_to_end) == (1.5, 1.25)
    assert report.tokens_per_second > 0

    rows = rows_of(config)
    good = {i: r for i, r in rows.items() if r["status"] == "ok"}
    assert {i: r["completion"] for i, r in good.items()} == {
        f"r{i:03}": expected(f"prompt of r{i:03}", MAX_TOKENS) for i in range(30)
    }
    assert report.completion_tokens == sum(r["completion_tokens"] for r in good.values())
    assert {i: r["n"] for i, r in good.items()} == {f"r{i:03}": i for i in range(30)}

    phases = list(dict.fromkeys(p.phase for p in seen))
    assert phases == ["checking", "starting", "decoding", "finishing"]
    assert seen[-1].rows_done == seen[-1].rows_total == 35
    beat = read_heartbeat(Store(config.output)) or {}
    assert (beat["phase"], beat["rows_done"], beat["rows_error"]) == ("ended", 35, 5)
    assert beat["errors_by_code"] == codes
    check_readers(config)
    check_manifest(config, report)
    check_second_run(tmp_path, config, report)


def kind_here() -> Any:
    return str(load_dtype("auto", "cpu")).removeprefix("torch.")


def check_readers(config: RunConfig) -> None:
    """All files have one schema, and common readers take the folder as it is."""
    files = sorted(Path(config.output).glob("*.parquet"))
    schemas = [pq.read_schema(file) for file in files]
    assert [file.name[:7] for file in files] == ["merged-"]
    assert all(schema.equals(schemas[0], check_metadata=True) for schema in schemas)
    assert schemas[0].names[:4] == ["id", "row_key", "n", "completion"]
    loaded = datasets.load_dataset(
        "parquet",
        data_files=f"{config.output}/*.parquet",
        cache_dir=f"{config.output}-cache",
        split="train",
    )
    assert sorted(loaded["id"]) == sorted(rows_of(config))


def check_manifest(config: RunConfig, report: RunReport) -> None:
    """The manifest lists what is there; `_SUCCESS` came after it."""
    manifest = read_manifest(config.output)
    files = {p.name: pq.read_metadata(p).num_rows for p in Path(config.output).glob("*.parquet")}
    assert {f["name"]: f["rows"] for f in manifest["files"]} == files
    assert manifest["totals"]["rows"] == sum(files.values()) == 35
    assert manifest["errors_by_code"] == report.errors_by_code
    assert manifest["statistics"]["speedup"] == report.speedup
    assert manifest["fields"]["sampling.max_tokens"] == MAX_TOKENS
    assert manifest["fields"]["dtype"] == kind_here()
    success = Path(config.output) / "_SUCCESS"
    record = Path(config.output) / "_admg" / "manifest.json"
    assert success.stat().st_mtime_ns >= record.stat().st_mtime_ns
    assert json.loads((record.parent / "run.json").read_text())["config"]["rows_per_block"] == 8


def snapshot(config: RunConfig) -> dict[Path, int]:
    """All files with their times, but for the lease and the heartbeat: each run has its own."""
    files = [p for p in Path(config.output).rglob("*") if p.is_file()]
    own = ("lease", "heartbeat.json")
    return {p: p.stat().st_mtime_ns for p in files if not {p.name, p.parent.name} & {*own}}


def check_second_run(tmp_path: Path, config: RunConfig, report: RunReport) -> None:
    """Nothing left to do is a success that changes nothing; other settings are refused."""
    before = snapshot(config)
    untouched = StandIn(refuses_to_load=True)
    faster = replace(
        config,
        rows_per_block=3,
        dtype=kind_here(),  # what "auto" was
        engine=EngineConfig(max_num_seqs=2, draft=DraftConfig(drafter="none")),
    )
    again = run(faster, engine_factory=untouched)
    same = ("rows_total", "rows_ok", "rows_error", "completion_tokens", "speedup", "errors_by_code")
    assert {n: getattr(again, n) for n in same} == {n: getattr(report, n) for n in same}
    assert again.rows_reused == 35
    assert before == snapshot(config)

    other = replace(config, sampling=SamplingParams(max_tokens=MAX_TOKENS, temperature=0.5))
    with pytest.raises(ValueError, match=r"sampling.temperature was 0.0 and is now 0.5"):
        run(other, engine_factory=untouched)
    with pytest.raises(ValueError, match=r"model.weights was 'stand-in' and is now 'another'"):
        run(config, engine_factory=replace(untouched, model="another"))
    changed = prompts(0, 20).set_column(1, "prompt", pa.array(["another prompt"] * 20))
    pq.write_table(changed, tmp_path / "in" / "shard-0.parquet")
    with pytest.raises(ValueError, match=r"20 rows of .*shard-0.parquet have an id that output"):
        run(config, engine_factory=untouched)


def test_an_engine_that_is_gone_loses_nothing_and_what_is_committed_is_not_redone(
    tmp_path: Path,
) -> None:
    write_shards(tmp_path / "in", [prompts(0, 40), prompts(40, 80)])
    config = config_of(tmp_path)
    fuse = tmp_path / "fuse"

    def light(_: Progress) -> None:
        if any(Path(config.output).glob("*.parquet")):
            fuse.touch()

    factory = StandIn(fuse=str(fuse), die_after=20, step_seconds=0.2)
    with pytest.raises(
        PipelineError, match=r"could not be loaded: OSError: the stand-in's weights"
    ):
        run(config, engine_factory=factory, on_progress=light)
    committed = len(rows_of(config))
    assert 0 < committed < 80
    beat = read_heartbeat(Store(config.output)) or {}
    assert (beat["phase"], "weights are gone" in beat["reason"]) == ("failed", True)
    assert not (Path(config.output) / "_SUCCESS").exists()

    done = {row["row_key"].hex() for row in rows_of(config).values()}
    write_shards(tmp_path / "in", [prompts(0, 40), prompts(40, 80), prompts(80, 90)])
    second = StandIn(log=str(tmp_path / "second log"))
    report = run(config, engine_factory=second)
    assert (report.rows_total, report.rows_reused) == (90, committed)
    assert_decoded(config, [f"r{i:03}" for i in range(90)])
    todo = {row["row_key"].hex() for row in rows_of(config).values()} - done
    assert sorted(second.submitted()) == sorted(todo)
    assert (Path(config.output) / "_SUCCESS").exists()
    assert read_manifest(config.output)["run"]["rows_reused"] == committed


def test_a_model_that_does_not_load_says_why(tmp_path: Path) -> None:
    write_shards(tmp_path / "in", [prompts(0, 4)])
    with pytest.raises(PipelineError) as caught:
        run(config_of(tmp_path), engine_factory=StandIn(refuses_to_load=True))
    assert "the model could not be loaded: OSError: the stand-in's weights" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_chat_messages_integer_ids_and_two_actors(tmp_path: Path) -> None:
    messages = [[{"role": "user", "content": f"question {i}"}] for i in range(24)]
    tags = pa.array([["x", None] if i % 2 else None for i in range(24)])
    shard = pa.table({"id": pa.array(range(24), pa.int32()), "chat": messages, "tags": tags})
    write_shards(tmp_path / "in", [shard.slice(0, 12), shard.slice(12)])
    config = config_of(
        tmp_path,
        input=((tmp_path / "in").as_uri() + "/shard-*.parquet",),
        output=(tmp_path / "out").as_uri(),
        prompt=PromptConfig(column="chat", mode="chat", system="brief", on_long="truncate-left"),
        keep=("tags", "chat"),
        actors=2,
        rows_per_block=4,
    )
    report = run(config, engine_factory=StandIn(detokenizes=False))
    assert (report.rows_ok, report.rows_error) == (24, 0)
    rows = rows_of(replace(config, output=str(tmp_path / "out")))
    for i in range(24):
        text = f"<system>brief<user>question {i}<assistant>"
        assert rows[i]["completion"] == expected(text, MAX_TOKENS, special=False)
        assert rows[i]["tags"] == (["x", None] if i % 2 else None)
        assert rows[i]["chat"] == messages[i]


def test_mistakes_are_found_before_anything_is_made(tmp_path: Path) -> None:
    write_shards(tmp_path / "in", [prompts(0, 4), prompts(3, 5)])
    config = config_of(tmp_path)
    untouched = StandIn(refuses_to_load=True)
    mistakes = {
        "1 ids more than once, 'r003' for one": config,
        "has no column 'text'": replace(config, prompt=PromptConfig(column="text")),
        "there is no such file or folder": replace(config, input=("nowhere",)),
        "must leave room for a prompt": replace(config, sampling=SamplingParams(max_tokens=400)),
        "must lie outside of the input": replace(config, output=f"{config.input[0]}/out"),
        "name of a result column": replace(config, id_column="status"),
    }
    renamed = prompts(0, 4).rename_columns(["status", "prompt", "n"])
    for words, mistaken in mistakes.items():
        if mistaken.id_column == "status":
            write_shards(tmp_path / "in2", [renamed])
            mistaken = replace(mistaken, input=(str(tmp_path / "in2"),))
        with pytest.raises(ValueError) as caught:
            run(mistaken, engine_factory=untouched)
        assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_empty_input_is_a_success(tmp_path: Path) -> None:
    write_shards(
        tmp_path / "in", [{"id": pa.array([], pa.int64()), "prompt": pa.array([], pa.string())}]
    )
    report = run(config_of(tmp_path), engine_factory=StandIn(refuses_to_load=True))
    assert (report.rows_total, report.rows_ok, report.speedup) == (0, 0, None)
    assert (tmp_path / "out" / "_SUCCESS").exists()
