"""`admg-batch doctor`: what it finds, what it calls a problem, and that it leaves no trace."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from jobs.doctor import machine
from jobs.doctor.model import choice
from jobs.sizing import known_model
from tests.ray_head import ray_head

GIB = 2**30


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def looked(done: Result) -> dict[str, dict[str, Any]]:
    """Findings by topic; of several paths the last."""
    return {f["topic"]: f for f in json.loads(done.stdout)["findings"]}


def test_a_machine_on_which_all_is_well(
    tmp_path: Path, tiny: Path, admg_batch: Callable[..., Result]
) -> None:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "a.parquet").write_bytes(b"x")
    done = admg_batch("doctor", "--path", tmp_path / "prompts", "--model", tiny, "--load", "--json")
    assert done.exit_code == 0, done.output
    found = looked(done)
    assert json.loads(done.stdout)["problems"] == 0
    assert found["software"]["packages"]["ray"] and found["memory"]["free_bytes"] > 0
    assert found["speed"]["gb_per_second"] > 0
    path = found["path"]
    assert (path["readable"], path["writable"], path["files"]) == (True, True, 1)
    assert [p.name for p in (tmp_path / "prompts").iterdir()] == ["a.parquet"]
    model, engine, drafter = found["model"], found["engine"], found["drafter"]
    assert (model["layers"], model["longest"], model["chat_template"]) == (5, 512, False)
    assert engine["max_num_seqs"] == 16 and engine["kv_budget_bytes"] > 0
    assert engine["sequences_that_fit"] > 16
    assert sum(drafter["rounds_by_choice"].values()) > 0
    assert drafter["decode_tokens_per_second"] > 0


def test_what_is_in_the_way_is_named(tmp_path: Path, admg_batch: Callable[..., Result]) -> None:
    (tmp_path / "file").write_text("x")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        ways = ["--path", tmp_path / "out", "--path", "nope://me:secret@there/x"]
        ways += ["--address", address, "--model", tmp_path]
        done = admg_batch("doctor", "--no-probe", *ways)
    assert done.exit_code == 2, done.output
    assert "secret" not in done.output and "Traceback" not in done.output
    problems = " ".join(done.stdout.split()).split("problem ")[1:]
    assert len(problems) == 3
    for said, topic in zip(problems, ("cluster", "path", "model"), strict=True):
        assert said.startswith(topic)
    assert "nope://***@there/x cannot be read" in problems[1]
    assert "out is not there yet, and can be made" in " ".join(done.stdout.split())
    assert not (tmp_path / "out").exists()


def test_options_that_miss_another(admg_batch: Callable[..., Result]) -> None:
    done = admg_batch("doctor", "--load")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "Error: --load is given: it must come with --model\n"


def test_what_the_engine_would_choose() -> None:
    llama = known_model("Llama-2-13b")
    small = choice(llama, 8 * GIB)
    assert small.state == "problem" and "8.0 GiB are free" in small.text
    large = choice(llama, 200 * GIB)
    assert large.state == "ok"
    assert large.facts["weights_bytes"] == llama.num_parameters * (
        2 if large.facts["dtype"] == "bfloat16" else 4
    )
    assert 0 < large.facts["kv_budget_bytes"] < 200 * GIB - large.facts["weights_bytes"]


def test_a_container_with_less_memory_than_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine goes by the machine's free memory: on CPU it would take too much."""
    monkeypatch.setattr("pipeline.machine._CGROUP", tmp_path)
    assert machine.memory().state == "ok"
    (tmp_path / "memory.max").write_text(f"{GIB}\n")
    (tmp_path / "memory.current").write_text(f"{GIB // 4}\n")
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    found = machine.memory()
    assert found.state == "note" and "--kv-budget" in found.text
    assert found.facts["free_bytes"] == GIB - GIB // 4
    assert machine.processors().facts["cpus"] == 0.5


@pytest.mark.cluster
def test_a_cluster_that_answers_and_one_that_wants_another_token() -> None:
    """pytest -m cluster tests/jobs/test_doctor.py: a Ray head with a dashboard and a token."""
    with ray_head() as head:
        done = head.admg_batch("doctor", "--no-probe", "--json")
        wrong = head.env | {"RAY_AUTH_TOKEN": "0" * 64}
        refused = head.admg_batch("doctor", "--no-probe", "--json", env=wrong)
    found = {f["topic"]: f for f in json.loads(done.stdout)["findings"]}["cluster"]
    assert done.returncode == 0, done.stdout + done.stderr
    assert (found["state"], found["jobs"], found["running"]) == ("ok", 0, 0)
    found = {f["topic"]: f for f in json.loads(refused.stdout)["findings"]}["cluster"]
    assert (refused.returncode, found["state"]) == (2, "problem")
    assert head.token not in done.stdout + refused.stdout and "0" * 64 not in refused.stdout
