"""A dry run: what it prints is what a run would do, and it leaves no trace."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.job_file import JobFile, read_job_file
from jobs.params import run_config
from jobs.plan import make_plan
from jobs.resolved import resolved_toml
from pipeline.config import RunConfig
from tests.pipeline.standin import StandIn

Call = Callable[..., Result]

FLAGS = st.fixed_dictionaries(
    {},
    optional={
        "keep": st.lists(st.text(min_size=1, max_size=5), unique=True, max_size=2),
        "system": st.text(max_size=5),
        "stop": st.lists(st.text(min_size=1, max_size=5), max_size=2),
        "stop_token_id": st.lists(st.integers(0, 9), max_size=2),
        "temperature": st.floats(0, 3),
        "seed": st.integers(0, 2**63 - 1),
        "max_tokens": st.integers(1, 10**9),
        "kv_budget": st.integers(1, 2**50).map(str),
        "drop_mlps": st.lists(st.integers(0, 40), unique=True, max_size=3),
        "exit_threshold": st.floats(0, 1),
        "remake_after": st.integers(1, 99),
        "remake_every": st.integers(1, 99),
        "gpus_per_actor": st.sampled_from((0.0, 1.0)),
        "threads": st.integers(1, 99),
        "rows_per_block": st.integers(1, 99),
        "audit": st.floats(0, 1),
        "row_parameters": st.lists(st.sampled_from(["seed", "max_tokens"]), unique=True),
        "retry_failed": st.booleans(),
        "storage_patience": st.floats(0, 99),
        "max_model_len": st.integers(2, 99999),
        "hole_filling": st.booleans(),
        "draft_weights": st.sampled_from(["full", "int8"]),
    },
)
LEVELS = st.sampled_from(
    [
        {},
        {"drop_layers": 3},
        {"similarity_threshold": 0.9},
        {"drop_quantile": 0.5},
        {"drop_attention": [1, 4]},
        {"window_share": 0.5, "window": 7},
        {"window_threshold": 0.5},
    ]
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flags=FLAGS, level=LEVELS, prompt=st.sampled_from(["raw", "chat", "template", "both"]))
def test_what_is_printed_is_a_job_file_of_the_same_job(
    flags: dict[str, Any], level: dict[str, Any], prompt: str, tmp_path: Path
) -> None:
    template = tmp_path / "t.txt"
    template.write_text("Say {word}")
    job = JobFile()
    if system := flags.pop("system", None):
        job = JobFile.model_validate({"prompt": {"system": system, "chat": True}})
        prompt = "chat"
    given = {"input": ["/in", "s3://b/x"], "output": "/out", "model": "demo", **flags, **level}
    if prompt in ("chat", "both"):
        given["chat"] = True
    if prompt in ("template", "both"):
        given["template"] = str(template)
    config = run_config(given, job)
    path = tmp_path / "resolved.toml"
    path.write_text(resolved_toml(config, given.get("template")), encoding="utf-8")
    assert run_config({}, read_job_file(str(path))) == config


def config_of(tmp_path: Path, rows: int = 40, **more: Any) -> RunConfig:
    folder = tmp_path / "in"
    folder.mkdir(exist_ok=True)
    table = pa.table({"id": list(range(rows)), "prompt": [f"row {i:03d}" for i in range(rows)]})
    pq.write_table(table.slice(0, rows // 2), folder / "a.parquet")
    pq.write_table(table.slice(rows // 2), folder / "b.parquet")
    return RunConfig((str(folder),), str(tmp_path / "out"), "-", **more)


def files_below(folder: Path) -> dict[str, float]:
    return {str(p): p.stat().st_mtime_ns for p in sorted(folder.rglob("*"))}


def test_the_plan_counts_rows_and_tokens_and_writes_nothing(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    before = files_below(tmp_path)
    plan = make_plan(config, engine_factory=StandIn(max_num_seqs=3, step_seconds=0.001))
    assert files_below(tmp_path) == before
    assert (plan.shards, plan.rows, plan.rows_left, plan.rows_tokenised) == (2, 40, 40, 40)
    # The stand-in's tokens are bytes, and one more begins a prompt.
    assert plan.prompt_tokens_left == 40 * (len("row 000") + 1)
    assert plan.sample is not None and plan.sample.sequences == plan.sample.ended == 8
    assert plan.completion_tokens_left == 40 * plan.sample.completion_tokens / 8
    assert plan.hours is not None and plan.sample.decode_tokens_per_second is not None
    seconds = plan.completion_tokens_left / plan.sample.decode_tokens_per_second
    assert plan.hours * 3600 == pytest.approx(seconds)
    two = make_plan(
        replace(config, gpus_per_actor=1.0), with_sample=False, engine_factory=StandIn()
    )
    assert (two.sample, two.hours, two.gpu_hours) == (None, None, None)
    assert two.completion_tokens_left == 40 * config.sampling.max_tokens
    assert "no pace" in two.basis[1]


@pytest.mark.parametrize(
    ("changes", "address", "times"),
    [
        ({"actors": 1}, "", 1),
        ({"actors": 4}, "", 1),  # each has a quarter of the cores, which the sample had all
        ({"actors": 4, "threads": 2}, "", 4),
        ({"actors": 8, "threads": 2}, "", 4),
        ({"actors": 3}, "", 6 / 8),
        ({"actors": 4}, "127.0.0.1:1", 4),  # on a cluster each has a machine like this one
    ],
)
def test_actors_on_the_cpus_of_one_machine_share_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, int],
    address: str,
    times: float,
) -> None:
    monkeypatch.setattr("jobs.plan.usable_cores", lambda: 8)
    monkeypatch.setenv("RAY_ADDRESS", address)
    config = config_of(tmp_path, **changes)
    plan = make_plan(config, engine_factory=StandIn(max_num_seqs=3, step_seconds=0.001))
    assert plan.sample is not None and plan.sample.decode_tokens_per_second is not None
    assert plan.completion_tokens_left is not None and plan.hours is not None
    alone = plan.completion_tokens_left / plan.sample.decode_tokens_per_second
    assert plan.hours * 3600 == pytest.approx(alone / times)
    assert plan.actors == changes["actors"]


def test_bad_rows_are_foretold(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    texts = ["good", None, "x" * 5000, "good"]
    pq.write_table(pa.table({"id": [1, 2, 3, 4], "prompt": texts}), folder / "a.parquet")
    config = RunConfig((str(folder),), str(tmp_path / "out"), "-")
    plan = make_plan(config, engine_factory=StandIn())
    assert plan.share_of_error_rows == 0.5
    assert plan.prompt_tokens_left == 2 * 5


def test_the_command_prints_a_job_file_with_the_plan(
    admg_batch: Call, tiny: Path, shards: Path, tmp_path: Path
) -> None:
    (tmp_path / "job.toml").write_text(
        f'input = ["{shards}"]\noutput = "out"\nmodel = "{tiny}"\n[sampling]\nmax_tokens = 9\n'
    )
    command = ("run", "--config", tmp_path / "job.toml", "--max-tokens", 4, "--drafter", "none")
    shown = admg_batch(*command, "--dry-run")
    assert shown.exit_code == 0, shown.output
    (tmp_path / "copy.toml").write_text(shown.stdout)
    config = run_config({}, read_job_file(str(tmp_path / "copy.toml")))
    assert config.sampling.max_tokens == 4
    assert config.output == os.path.join(tmp_path, "out")
    assert "rows         6, of which 6 are left to do" in shown.stdout
    assert "sample       6 rows of up to 4 tokens" in shown.stdout
    told = json.loads(admg_batch(*command, "--dry-run", "--json", "--no-sample").stdout)
    assert told["plan"]["rows_left"] == 6 and told["plan"]["sample"] is None
    assert told["configuration"]["sampling"]["max_tokens"] == 4
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--no-sample", "--json"])
def test_options_of_a_plan_need_one(admg_batch: Call, option: str) -> None:
    refused = admg_batch("run", "--input", "a", "--output", "b", "--model", "c", option)
    assert refused.exit_code == 2
    assert f"{option} must go with --dry-run" in refused.stderr
