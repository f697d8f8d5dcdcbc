"""The command line: exit codes, messages, and what reaches the pipeline."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result

import jobs.report
import jobs.report.read
import pipeline.run
from jobs import demo_model
from pipeline.config import RunConfig
from pipeline.errors import PipelineError
from pipeline.progress import Progress
from pipeline.retry import Patience
from pipeline.run import RunReport
from pipeline.storage import Store
from tests.pipeline.outputs import commit_rows
from tests.pipeline.refusing import refusing

Call = Callable[..., Result]
RUN = ("run", "--input", "in", "--output", "my out", "--model", "m")


def finished(**values: Any) -> RunReport:
    none = dict.fromkeys(
        ("mean_acceptance_length", "draft_acceptance_rate", "speedup", "speedup_end_to_end")
    )
    counts = dict.fromkeys(("rows_reused", "rows_error", "prompt_tokens", "completion_tokens"), 0)
    rest = {"rows_total": 2, "rows_ok": 2, "seconds": 1.0, "tokens_per_second": 3.0}
    known = none | counts | rest | {"errors_by_code": {}, "output": "my out"}
    return RunReport(**(known | values))


@pytest.fixture
def configs(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """Runs do nothing but end well; the configurations that they were given."""
    seen: list[RunConfig] = []

    def run(config: RunConfig, **_: Any) -> RunReport:
        seen.append(config)
        return finished()

    monkeypatch.setattr(pipeline.run, "run", run)
    monkeypatch.setattr(jobs.report, "read_output", empty_report)
    return seen


def empty_report(output: str) -> jobs.report.Report:
    numbers = [2, 2, 0, 0, 0, None, None, None, None]
    return jobs.report.Report(output, True, *numbers, {}, {}, {}, {})  # type: ignore[arg-type]


def run_raises(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(config: RunConfig, *, on_progress: Callable[[Progress], None]) -> RunReport:
        on_progress(Progress(rows_total=7, rows_done=5, phase="decoding"))
        raise error

    monkeypatch.setattr(pipeline.run, "run", run)


def test_options_reach_the_pipeline(admg_batch: Call, configs: list[RunConfig]) -> None:
    args = ("--input", "in2", "--stop", "a", "--stop", "b", "--stop-token-id", 3, "--chat")
    args += ("--keep", "k", "--ignore-eos", "--drafter", "none", "--kv-budget", "1MiB")
    result = admg_batch(*RUN, *args)
    assert result.exit_code == 0, result.output
    (config,) = configs
    assert config.input == ("in", "in2") and config.keep == ("k",)
    assert config.sampling.stop == ("a", "b") and config.sampling.stop_token_ids == (3,)
    assert config.sampling.ignore_eos and config.prompt.mode == "chat"
    assert config.engine.draft.drafter == "none" and config.engine.kv_budget_bytes == 2**20


def test_a_job_file_can_stand_for_all_options(
    admg_batch: Call, configs: list[RunConfig], tmp_path: Path
) -> None:
    job = tmp_path / "job.toml"
    job.write_text('input=["in"]\noutput="o"\nmodel="m"\n[sampling]\nmax_tokens=3\n')
    assert admg_batch("run", "--config", job).exit_code == 0
    assert admg_batch("run", "--config", job, "--max-tokens", 4).exit_code == 0
    assert [c.sampling.max_tokens for c in configs] == [3, 4]
    assert configs[0].output == str(tmp_path / "o")


def test_demo_means_the_demo_model(
    admg_batch: Call, configs: list[RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_model, "demo_model", lambda: Path("/cache/demo"))
    assert admg_batch(*RUN[:-1], "demo").exit_code == 0
    assert configs[0].model == "/cache/demo"


def test_a_demo_model_out_of_reach_is_one_sentence(
    admg_batch: Call, configs: list[RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Path:
        raise demo_model.DemoModelError("the index is not reachable")

    monkeypatch.setattr(demo_model, "demo_model", fail)
    result = admg_batch(*RUN[:-1], "demo")
    assert (result.exit_code, result.output) == (2, "Error: the index is not reachable\n")
    assert not configs


def test_error_rows_are_exit_code_3(
    admg_batch: Call, configs: list[RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.run, "run", lambda config, **_: finished(rows_error=1))
    result = admg_batch(*RUN)
    assert result.exit_code == 3
    assert "Summary" in result.output


def test_a_users_mistake_is_exit_code_2_and_one_sentence(
    admg_batch: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_raises(monkeypatch, ValueError("id_column is 'id': the input has no such column"))
    result = admg_batch(*RUN)
    assert result.exit_code == 2
    assert result.stderr.endswith("Error: id_column is 'id': the input has no such column\n")
    assert "Traceback" not in result.output
    assert "Traceback" in admg_batch(*RUN, "-v").output


@pytest.mark.parametrize(
    "error", [PipelineError("3 rows are missing"), RuntimeError("boom\nlong"), RuntimeError("")]
)
def test_a_run_that_ends_early_is_exit_code_4_and_says_how_to_go_on(
    admg_batch: Call, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    run_raises(monkeypatch, error)
    result = admg_batch(*RUN)
    assert result.exit_code == 4
    assert "0 of 7 rows are kept in my out" in result.output
    assert "admg-batch run --input in --output 'my out' --model m\n" in result.output
    last = result.output.splitlines()[-1]
    assert last.startswith(f"Error: {type(error).__name__}: ") and "-v" in last
    assert "long" not in result.output and "Traceback" not in result.output
    assert "Traceback" in admg_batch(*RUN, "-v").output


def test_ctrl_c_is_exit_code_130_and_says_how_to_go_on(
    admg_batch: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_raises(monkeypatch, KeyboardInterrupt())
    result = admg_batch(*RUN)
    assert result.exit_code == 130
    assert "Interrupted: 0 of 7 rows are kept in my out" in result.output
    assert "admg-batch run --input in --output 'my out' --model m\n" in result.output


@pytest.mark.parametrize(
    ("ids", "kept"),
    [
        (["abc", "bcd"], "4 of 7 rows are kept in {}"),
        (["abcdefgh", "h"], "8 rows are kept in {}"),
    ],
)
def test_rows_that_are_kept_twice_or_are_no_input_any_more_are_not_counted_as_done(
    admg_batch: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ids: list[str], kept: str
) -> None:
    for fence, some in enumerate(ids, start=1):
        store = Store(str(tmp_path / "out"), fence)
        store.prepare()
        commit_rows(store, *some)
    run_raises(monkeypatch, KeyboardInterrupt())
    result = admg_batch("run", "--input", "in", "--output", tmp_path / "out", "--model", "m")
    assert result.exit_code == 130
    assert f"Interrupted: {kept.format(tmp_path / 'out')}. To go on" in result.output


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (PipelineError("x"), 4)])
def test_nobody_waits_for_a_count_of_rows_where_the_storage_fails(
    admg_batch: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Any, code: int
) -> None:
    def broken(uri: str, patience: Patience) -> Store:
        assert patience.seconds <= 1
        return refusing(uri, times=10**9, seconds=0.01)

    store = Store(str(tmp_path / "out"))
    store.prepare()
    commit_rows(store, "a")
    run_raises(monkeypatch, error)
    monkeypatch.setattr(jobs.report.read, "Store", broken)
    result = admg_batch("run", "--input", "in", "--output", store.uri, "--model", "m")
    assert result.exit_code == code
    assert f"what is committed is kept in {store.uri}. To go on" in result.output
    assert "admg-batch run --input in --output" in result.output


def test_rows_that_are_no_input_any_more_are_told(
    admg_batch: Call, configs: list[RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "not in the input" not in admg_batch(*RUN).output
    monkeypatch.setattr(pipeline.run, "run", lambda config, **_: finished(rows_not_in_input=4))
    result = admg_batch(*RUN)
    assert result.exit_code == 0
    assert re.search(r"not in the input +│ 4 rows, which stay", result.output)


def empty_shard(folder: Path) -> Path:
    folder.mkdir()
    table = pa.table({"id": pa.array([], pa.int64()), "prompt": pa.array([], pa.string())})
    pq.write_table(table, folder / "empty.parquet")
    return folder


def test_an_empty_input_is_a_success(admg_batch: Call, tiny: Path, tmp_path: Path) -> None:
    given, output = empty_shard(tmp_path / "in"), tmp_path / "out"
    for _ in range(2):
        result = admg_batch("run", "--input", given, "--output", output, "--model", tiny)
        assert result.exit_code == 0, result.output
        assert "Summary" in result.output and "0 ok, 0 error" in result.output
    assert (output / "_SUCCESS").exists()
    assert admg_batch("report", output).exit_code == 0

    # Of an output that anybody can write to, what was written is not believed.
    for content in ("{}", "[]", '{"files": [{}]}'):
        (output / "_admg" / "manifest.json").write_text(content)
        run = ("run", "--input", given, "--output", output, "--model", tiny)
        for command in (run, ("status", output), ("report", output)):
            result = admg_batch(*command)
            assert result.exit_code == 2, (command, result.output)
            assert "its _admg/manifest.json was changed by somebody else" in result.stderr
    (output / "_admg" / "manifest.json").unlink()
    assert admg_batch(*run).exit_code == 0


def test_bad_shards_that_are_left_out_are_exit_code_3_and_named(
    admg_batch: Call, tiny: Path, tmp_path: Path
) -> None:
    given = empty_shard(tmp_path / "in")
    (given / "torn.parquet").write_bytes(b"PAR1 torn")
    run = ("run", "--input", given, "--output", tmp_path / "out", "--model", tiny)
    result = admg_batch(*run, "--allow-bad-shards")
    assert result.exit_code == 3, result.output
    said = f"Left out: the input shard {given / 'torn.parquet'} cannot be read as Parquet"
    assert said in result.stderr
    refused = admg_batch(*run)
    assert refused.exit_code == 2 and "torn.parquet" in refused.stderr


NOBODY = "'~nobodyxyz/x' is no usable path: there is no such user"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("run", "--input", "a"), "--output and --model must be given"),
        ((*RUN, "--max-tokens", "0"), "--max-tokens is 0: it must be at least 1"),
        ((*RUN, "--max-tokens", "x"), "'x' is not a valid integer"),
        ((*RUN, "--temperatur", "1"), "No such option '--temperatur'"),
        ((*RUN, "--drop-layers", "1", "--drop-quantile", ".1"), "contradict each other"),
        ((*RUN, "--config", "none.toml"), "the job file none.toml cannot be read"),
        (("rnu",), "No such command 'rnu'"),
        (("status", "~nobodyxyz/x"), NOBODY),
        (("prepare", "demo", "--output", "~nobodyxyz/x"), NOBODY),
        (("prepare", "jsonl", "~nobodyxyz/x", "--output", "out"), NOBODY),
        (("submit", "--input", "~nobodyxyz/x", "--output", "out", "--model", "demo"), NOBODY),
        ((*RUN, "--plan", "~nobodyxyz/x"), NOBODY),
    ],
)
def test_mistakes_are_found_before_anything_starts(
    admg_batch: Call, configs: list[RunConfig], args: tuple[str, ...], message: str
) -> None:
    result = admg_batch(*args)
    assert result.exit_code == 2
    assert message in result.output and "Traceback" not in result.output
    assert not configs


def test_the_installed_command_is_this_one() -> None:
    command = Path(sys.executable).with_name("admg-batch")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("admg-batch ")
