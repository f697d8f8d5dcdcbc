"""Faults 13, 14 and 15: changed prompts, an output changed behind our back, other modes."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from admg.config import DraftConfig, EngineConfig, SamplingParams
from admg.request import Completion, Request
from jobs.cli import main
from pipeline.config import PromptConfig, RunConfig
from pipeline.manifest import SUCCESS
from pipeline.run import run
from tests.pipeline.conftest import write_shards
from tests.pipeline.faults.killing import committed, kill_when
from tests.pipeline.faults.oracle import check_output, config_of, prompts
from tests.pipeline.standin import REFUSED, StandIn, StandInEngine

pytestmark = pytest.mark.usefixtures("ray_cluster")
UNTOUCHED = StandIn(refuses_to_load=True)


class ForgivingEngine(StandInEngine):
    """Nothing is refused by it."""

    def _complete(self, handle: int, request: Request, ids: list[int]) -> Completion:
        return super()._complete(handle, replace(request, prompt_token_ids=[1]), ids)


class Forgiving(StandIn):
    def build(self, max_num_seqs: int | None = None) -> StandInEngine:
        return ForgivingEngine(self)


def drafting(**changes: Any) -> EngineConfig:
    """The engine of the jobs here, with other drafts."""
    return EngineConfig(max_num_seqs=8, draft=DraftConfig(**changes))


TABLE = prompts(24)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """A finished output of three files, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    run(config_of(folder, TABLE, max_rows_per_file=0), engine_factory=StandIn())
    return folder


@pytest.fixture
def config(finished: Path, tmp_path: Path) -> RunConfig:
    """The run that made it, on a copy."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return config_of(tmp_path, TABLE, max_rows_per_file=0)


def changed(table: pa.Table, ids: range, word: str) -> pa.Table:
    """The same ids, some with another prompt."""
    texts = table["prompt"].to_pylist()
    texts = [f"{word} {t}" if i in ids else t for i, t in enumerate(texts)]
    return table.set_column(1, "prompt", pa.array(texts))


def test_fault_13_changed_prompts_are_refused_or_decoded_again(
    tmp_path: Path, config: RunConfig
) -> None:
    """Also where the recomputation dies: old and new rows then lie side by side for a while."""
    other = changed(TABLE, range(0, 16), "changed")
    write_shards(tmp_path / "in", [other])
    with pytest.raises(ValueError, match=r"16 rows of .* have an id that output .* another prompt"):
        run(config, engine_factory=UNTOUCHED)
    assert (tmp_path / "out" / SUCCESS).exists()
    check_output(config, TABLE)

    again = replace(config, on_changed="recompute", rows_per_block=4)
    slow = StandIn(step_seconds=0.05, max_num_seqs=4)
    kill_when(tmp_path, again, slow, lambda: committed(tmp_path / "out") > 24)
    assert not (tmp_path / "out" / SUCCESS).exists()
    assert set(pq.read_table(config.output)["id"].to_pylist()) == set(range(24))
    died = tmp_path / "died"
    shutil.copytree(tmp_path / "out", died)

    log = StandIn(log=str(tmp_path / "log"))
    report = run(again, engine_factory=log)
    assert report.rows_reused > 8
    assert len(log.submitted()) == 24 - report.rows_reused
    check_output(config, other)
    # Now they are what the output holds, so nothing is refused any more.
    assert run(config, engine_factory=UNTOUCHED).rows_reused == 24

    # Had the input gone back to what it was: the old rows, still there, would be right again.
    write_shards(tmp_path / "in", [TABLE])
    back = replace(config, output=str(died))
    assert run(back, engine_factory=UNTOUCHED).rows_reused == 24
    check_output(back, TABLE)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sampling": SamplingParams(max_tokens=13)}, r"sampling\.max_tokens was 12 and is now 13"),
        ({"sampling": SamplingParams(max_tokens=12, seed=1)}, r"sampling\.seed was 0 and is now 1"),
        ({"prompt": PromptConfig(mode="chat")}, r"prompt\.mode was 'raw' and is now 'chat'"),
        ({"dtype": "float16"}, r"dtype was .* and is now 'float16'"),
        (
            {"engine": drafting(verification="block")},
            r"verification was 'shared' and is now 'block'",
        ),
    ],
)
def test_fault_13_changed_settings_are_refused_by_name(
    config: RunConfig, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        run(replace(config, **changes), engine_factory=UNTOUCHED)
    assert (Path(config.output) / SUCCESS).exists()
    check_output(config, TABLE)


def test_fault_13_another_model_is_refused(config: RunConfig) -> None:
    another = replace(UNTOUCHED, model="another")
    with pytest.raises(ValueError, match=r"model\.weights was 'stand-in' and is now 'another'"):
        run(config, engine_factory=another)


def test_fault_13_what_only_changes_speed_may_change(config: RunConfig) -> None:
    """Nothing is decoded again for it."""
    engine = replace(drafting(drafter="ngram", draft_tokens=7), max_num_seqs=3)
    faster = replace(config, engine=engine, actors=2, rows_per_block=3, threads=1)
    assert run(faster, engine_factory=UNTOUCHED).rows_reused == 24


def test_failed_rows_are_tried_again_and_successes_stay(tmp_path: Path) -> None:
    """A success beats a failure, whichever is newer; a second failure replaces the first."""
    table = prompts(16, {3: REFUSED})
    config = config_of(tmp_path, table)
    refused = {3: "model_output_invalid"}
    first = run(config, engine_factory=StandIn())
    assert first.errors_by_code == {"model_output_invalid": 1}
    retry = replace(config, retry_failed=True)
    log = StandIn(log=str(tmp_path / "second"))
    report = run(retry, engine_factory=log)
    assert (report.rows_reused, len(log.submitted())) == (15, 1)
    check_output(config, table, refused)

    report = run(retry, engine_factory=Forgiving())
    assert (report.rows_reused, report.rows_error) == (15, 0)
    check_output(config, table)
    assert run(retry, engine_factory=UNTOUCHED).rows_reused == 16


def test_fault_14_files_that_are_deleted_are_made_again(
    tmp_path: Path, config: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    files = sorted((tmp_path / "out").glob("*.parquet"))
    assert len(files) == 3
    files[1].unlink()
    log = StandIn(log=str(tmp_path / "log"))
    with caplog.at_level(logging.WARNING):
        report = run(config, engine_factory=log)
    assert (report.rows_reused, len(log.submitted())) == (16, 8)
    assert f"1 files that its manifest names are gone, {files[1].name}" in caplog.text
    check_output(config, TABLE)


def test_fault_14_files_that_are_changed_are_named(tmp_path: Path, config: RunConfig) -> None:
    file = next((tmp_path / "out").glob("*.parquet"))
    whole = file.read_bytes()
    for data, words in (
        (whole[: len(whole) // 2], "cannot be read"),
        (b"", "cannot be read"),
        (parquet(pq.read_table(file).slice(1)), "its rows are not those"),
        (parquet(pa.table({"x": [1]})), "another configuration|no column"),
    ):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=rf"{file.name}.*({words})|{words}"):
            run(config, engine_factory=UNTOUCHED)
    file.write_bytes(whole)
    assert run(config, engine_factory=UNTOUCHED).rows_reused == 24


def parquet(table: pa.Table) -> bytes:
    out = pa.BufferOutputStream()
    pq.write_table(table, out)
    return bytes(out.getvalue())


def test_fault_15_there_is_no_way_to_overwrite_or_to_mix(tmp_path: Path, config: RunConfig) -> None:
    given = ["run", "--input", config.input[0], "--output", config.output, "--model", "m"]
    for mode in ("overwrite", "ignore", "append"):
        result = CliRunner().invoke(main, [*given, "--mode", mode])
        assert result.exit_code == 2
        assert "No such option" in result.output
    pq.write_table(pa.table({"x": [1]}), tmp_path / "out" / "theirs.parquet")
    with pytest.raises(ValueError, match=r"must be empty or this job's own, but holds theirs"):
        run(config, engine_factory=UNTOUCHED)
    (tmp_path / "out" / "theirs.parquet").unlink()
    check_output(config, TABLE)
