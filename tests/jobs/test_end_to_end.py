"""The whole command as people run it: a process, real Ray, the real demo model."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from click.testing import CliRunner

from jobs.cli import main
from jobs.options import ExampleGroup
from pipeline.machine import usable_cores
from pipeline.manifest import MANIFEST

COMMAND = str(Path(sys.executable).with_name("admg-batch"))
Run = Callable[..., "subprocess.CompletedProcess[str]"]

# Two threads of arithmetic that wait for one another are slow where other tests run beside them.
ONE_THREAD = ["--threads", "1"]

pytestmark = [pytest.mark.timeout(400), pytest.mark.usefixtures("demo_model_path")]


@pytest.fixture
def admg_batch(tmp_path: Path) -> Run:
    def call(*args: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *map(str, args)], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )

    return call


def rows_by_id(folder: Path) -> dict[Any, dict[str, Any]]:
    table = pq.read_table(folder)
    rows = {row["id"]: row for row in table.to_pylist()}
    assert len(rows) == len(table), "an id came out twice"
    return rows


@pytest.mark.slow  # `make run` goes the same way
def test_the_programs_own_example_runs(tmp_path: Path) -> None:
    assert isinstance(main, ExampleGroup)
    steps = [shlex.split(line) for line in main.example.splitlines()]
    assert [step[1] for step in steps] == ["prepare", "run", "report"]
    more = {"prepare": ["--max-chars", "300"], "run": ["--max-tokens", "8", *ONE_THREAD]}
    for step in steps:
        words = [COMMAND, *step[1:], *more.get(step[1], [])]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    assert "8 ok, 0 error" in done.stdout


def test_good_and_bad_rows_from_prepare_to_report(admg_batch: Run, tmp_path: Path) -> None:
    assert (
        admg_batch("prepare", "demo", "--output", "in", "--limit", 6, "--max-chars", 300).returncode
        == 0
    )
    bad = {"id": ["null", "empty", "long"], "prompt": [None, "", "word " * 20000]}
    pq.write_table(pa.table(bad | {"topic": ["a", "b", "c"]}), tmp_path / "in" / "bad.parquet")
    run = ("run", "--input", "in", "--output", "out", "--model", "demo", "--chat")
    run += ("--max-tokens", 12, "--keep", "topic", "--drop-layers", 4)
    run += ("--max-num-seqs", 4)  # two batches: each of two cores has an actor
    done = admg_batch(*run)
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert "6 ok, 3 error" in done.stdout and "One row" in done.stdout

    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["run"]["config"]["actors"] == min(2, usable_cores())
    rows = rows_by_id(tmp_path / "out")
    assert len(rows) == 9
    for name, row in rows.items():
        good = name not in bad["id"]
        assert row["status"] == ("ok" if good else "error")
        assert (row["error_code"] is None) == good
        if good:
            assert 0 < row["completion_tokens"] <= 12 and row["completion"].strip()
            assert row["topic"] and row["mean_acceptance_length"] >= 1
            assert len(row["dropped_attention_layers"]) >= 4
            if row["num_draft_tokens"]:
                saved = len(row["dropped_attention_layers"]) / len(row["attention_similarity"])
                assert row["draft_kv_saved"] == pytest.approx(saved)
    assert rows["long"]["error_code"] == "prompt_too_long"

    report = json.loads(admg_batch("report", "out", "--json").stdout)
    assert report["complete"] and (report["rows_ok"], report["rows_error"]) == (6, 3)
    assert report["completion_tokens"] == sum(r["completion_tokens"] or 0 for r in rows.values())

    again = admg_batch(*run)
    assert again.returncode == 3 and "(9 from earlier runs)" in again.stdout
    other = admg_batch(*run, "--max-tokens", 13)
    assert other.returncode == 2
    assert "max_tokens" in other.stderr and other.stderr.count("\n") <= 3
    assert rows_by_id(tmp_path / "out") == rows


def test_ctrl_c_keeps_what_is_committed_and_the_printed_command_goes_on(
    admg_batch: Run, tmp_path: Path
) -> None:
    prepare = ("prepare", "demo", "--output", "my in", "--limit", 6, "--max-chars", 300)
    assert admg_batch(*prepare).returncode == 0
    run = ["run", "--input", "my in", "--output", "out", "--model", "demo", "--chat"]
    run += ["--max-tokens", "16", "--rows-per-block", "1", "--max-num-seqs", "1"]
    run += ["--drafter", "none", *ONE_THREAD]  # starts sooner
    # What a shell starts in the background, these tests perhaps, ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [COMMAND, *run], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    signal.signal(signal.SIGINT, before)
    out, deadline = tmp_path / "out", time.monotonic() + 200
    while not list(out.glob("*.parquet")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    kept = rows_by_id(out)
    assert 0 < len(kept) < 6 and not (out / "_SUCCESS").exists()
    found = re.search(r"(\d+) of 6 rows are kept in out", said)
    assert found is not None and int(found[1]) == len(kept)

    line = next(line for line in said.splitlines() if line.startswith("  admg-batch "))
    words = shlex.split(line)
    assert words[1:] == run
    done = admg_batch(*words[1:])
    assert done.returncode == 0, done.stderr
    assert f"6 ok, 0 error ({len(kept)} from earlier runs)" in done.stdout
    whole = rows_by_id(out)
    assert len(whole) == 6 and (out / "_SUCCESS").exists()
    assert {name: whole[name] for name in kept} == kept, "a committed row was decoded again"


def test_mistakes_are_said_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", start)
    (tmp_path / "model").mkdir()
    given = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": ["a", "a"], "prompt": ["x", "y"]}), given)
    base = ["run", "--input", str(given), "--output", str(tmp_path / "out")]
    for extra, said in (
        (["--model", str(tmp_path / "model")], "/model"),
        (["--model", "demo"], "'a'"),
        (["--model", "demo", "--id-column", "key"], "'key'"),
        (["--model", "demo", "--prompt-column", "text"], "'text'"),
        (["--model", "demo", "--input", "none.parquet"], "none.parquet"),
    ):
        result = CliRunner().invoke(main, base + extra)
        assert result.exit_code == 2, result.output
        error = result.stderr.splitlines()[-1]
        assert error.startswith("Error: ") and said in error
    assert not (tmp_path / "out").exists()


def test_the_environment_of_the_tests_is_the_checkout() -> None:
    """A test of another copy of the program would prove nothing about this one."""
    place = [sys.executable, "-c", "import jobs; print(jobs.__file__)"]
    found = subprocess.run(place, capture_output=True, text=True, check=True, cwd=os.path.sep)
    assert Path(found.stdout.strip()).parents[1] == Path(__file__).parents[2]
