"""`submit`, `status` and `stop` against a real Ray head with dashboard and token.

The short test is part of make test; the others have a cluster each for minutes:

    .venv/bin/python -m pytest -m cluster tests/jobs/test_submit.py
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.ray_head import Head, ray_head

SECRET = "planted-5e5e5e"
ROWS = 60


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path, tiny: Path) -> Path:
    """A folder with prompts, a template and a job file for a model that takes its time."""
    names = [f"r{i}" for i in range(ROWS)]
    pq.write_table(pa.table({"id": names, "prompt": names}), tmp_path / "in.parquet")
    (tmp_path / "ask.txt").write_text("Say {prompt}, é\n", encoding="utf-8")
    (tmp_path / "night.toml").write_text(
        f'input = ["in.parquet"]\noutput = "out"\nmodel = "{tiny}"\n'
        '[prompt]\ntemplate = "ask.txt"\n[sampling]\nmax_tokens = 150\nignore_eos = true\n'
        '[draft]\ndrafter = "none"\n[engine]\nrows_per_block = 1\nmax_num_seqs = 1\n'
    )
    return tmp_path


def told(done: subprocess.CompletedProcess[str], code: int = 0) -> dict[str, Any]:
    assert done.returncode == code, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def until(what: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.3)


def rows_of(output: Path) -> dict[str, dict[str, Any]]:
    table = pq.read_table(output)
    rows = {row["id"]: row for row in table.to_pylist()}
    assert len(rows) == len(table), "an id came out twice"
    return rows


def test_sent_once_followed_refused_and_stopped(head: Head, tmp_path: Path) -> None:
    """What needs no model: an input that is not there ends a job with exit code 2."""
    submit = ["submit", "--input", "none", "--output", "out", "--model", "m", "--name", "night"]
    submit += ["--logical-date", "2026-11-21"]
    first = subprocess.Popen(
        [Path(sys.executable).with_name("admg-batch"), *submit],
        **{"env": head.env, "cwd": tmp_path, "text": True},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    listed = ["status", "--json"]

    def seen() -> bool:
        assert first.poll() is None, first.communicate()
        return bool(told(head.admg_batch(*listed, cwd=tmp_path))["jobs"])

    until(seen)
    double = told(head.admg_batch(*submit, "--no-wait", "--json", cwd=tmp_path))
    assert double["verdict"] == "running" and not double["submitted"]
    assert double["id"].startswith("night-2026-11-21-")
    log, said = first.communicate(timeout=60)
    assert first.returncode == 2, log + said
    assert f"input is '{tmp_path / 'none'}': there is no such file or folder" in log
    assert "failed, exit code 2" in said and "INFO" not in said

    second = told(head.admg_batch(*submit, "--no-wait", "--json", cwd=tmp_path))
    assert second["submitted"] and second["id"] == double["id"] + "-2"
    stopped = told(head.admg_batch("stop", "out", "--json", cwd=tmp_path))
    assert stopped["job"]["id"] == second["id"] and stopped["job"]["exit_code"] in (130, 2)

    bare = {k: v for k, v in head.env.items() if not k.startswith("RAY_AUTH")}
    (tmp_path / "token").write_text(head.token)
    by_file = bare | {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}  # the mode follows
    assert len(told(head.admg_batch(*listed, env=by_file))["jobs"]) == 2
    for token, right in (({}, "Missing"), ({"RAY_AUTH_TOKEN": "wrong"}, "Invalid")):
        env = bare | token
        refused = head.admg_batch(*submit, cwd=tmp_path, env=env)
        assert refused.returncode == 2 and right in refused.stderr
        assert "RAY_AUTH_TOKEN" in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.cluster
@pytest.mark.timeout(500)
def test_a_job_that_is_stopped_goes_on_when_it_is_submitted_again(head: Head, folder: Path) -> None:
    submit = ["submit", "--config", "night.toml", "--logical-date", "2026-11-21"]
    env = head.env | {"MY_TOKEN": SECRET, "MY_VARIABLE": "x"}
    asked = [*submit, "--no-wait", "--json", "--env", "MY_VARIABLE"]
    assert head.admg_batch(*asked, "--env", "MY_TOKEN", cwd=folder, env=env).returncode == 2
    sent = told(head.admg_batch(*asked, cwd=folder, env=env))

    def state() -> dict[str, Any]:
        return told(head.admg_batch("status", "--id", sent["id"], "--json", cwd=folder))

    out = folder / "out"
    until(lambda: len(list(out.glob("*.parquet"))) > 3)
    until(lambda: (state()["rows_total"], state()["state"]) == (ROWS, "running"))
    double = told(head.admg_batch(*submit, "--no-wait", "--json", cwd=folder))
    assert double["verdict"] == "running" and double["id"] == sent["id"]
    faster = head.admg_batch(*submit, "--max-num-seqs", 4, "--no-wait", cwd=folder)
    assert faster.returncode == 4 and sent["id"] in faster.stdout

    stopped = told(head.admg_batch("stop", "--id", sent["id"], "--json", cwd=folder))
    kept = rows_of(out)
    assert stopped["stopped"] and stopped["job"]["status"] == "STOPPED"
    assert stopped["output"]["state"] == "incomplete"
    assert stopped["output"]["rows_done"] == len(kept) and 3 < len(kept) < ROWS
    assert stopped["output"]["phase"] == "interrupted"

    again = head.admg_batch(*submit, cwd=folder)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"It goes on from {sent['id']}, which was stopped" in again.stdout
    assert f"{ROWS} ok, 0 error ({len(kept)} from earlier runs)" in again.stdout
    whole = rows_of(out)
    assert len(whole) == ROWS and {name: whole[name] for name in kept} == kept
    done = told(head.admg_batch("status", "out", "--json", cwd=folder))
    assert (done["state"], done["rows_done"], done["rows_left"]) == ("finished", ROWS, 0)
    assert done["job"]["id"] == sent["id"] + "-2" and done["job"]["exit_code"] == 0
    third = told(head.admg_batch(*submit, "--json", cwd=folder))
    assert third["verdict"] == "finished" and third["id"] == sent["id"] + "-2"
    forced = told(head.admg_batch(*submit, "--json", "--again", cwd=folder))
    assert forced["submitted"] and forced["id"] == sent["id"] + "-3" and not forced["exit_code"]
    assert rows_of(out) == whole

    for secret in (SECRET, head.token):  # in the cluster's logs and metadata, and in the output
        for place in (head.folder, out):
            held = ["grep", "-rlF", secret, str(place)]
            assert subprocess.run(held, capture_output=True, check=False).stdout == b""


@pytest.mark.cluster
@pytest.mark.timeout(500)
def test_code_and_error_rows(head: Head, folder: Path, tmp_path: Path) -> None:
    """The wheel of this checkout runs, and error rows are exit code 3 all the way."""
    root = Path(__file__).parents[2]
    source = tmp_path / "source"
    source.mkdir()
    for name in ("admg", "pipeline", "jobs"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(root / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source / name)
    marked = source / "jobs" / "job_file.py"
    marked.write_text(marked.read_text() + '\nprint("the code of the wheel")\n')
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", str(tmp_path), str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    bad = {"id": ["a", "b"], "prompt": ["x", "word " * 500]}
    pq.write_table(pa.table(bad), folder / "in.parquet")
    submit = ["submit", "--config", "night.toml", "--max-tokens", 5]
    done = head.admg_batch(*submit, "--wheel", wheel, cwd=folder)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "python -m jobs run" in done.stdout and "the code of the wheel" in done.stdout
    assert "1 ok, 1 error" in done.stdout
    again = head.admg_batch(*submit, "--ship-code", cwd=folder)
    assert again.returncode == 3 and "has finished with error rows" in again.stdout
    state = told(head.admg_batch("status", "out", "--json", cwd=folder))
    assert state["errors_by_code"] == {"prompt_too_long": 1}
    here = head.admg_batch(*submit, "--ship-code", "--again", cwd=folder)
    assert here.returncode == 3 and "the code of the wheel" not in here.stdout
