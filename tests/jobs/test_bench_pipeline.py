"""`admg-batch bench pipeline`: what it refuses, what it makes, and a whole small run of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import Result

from jobs.bench.null_engine import NullFactory
from jobs.bench.null_runs import Say, commit_all, null_config, write_input
from jobs.bench.pipeline import Sizes
from pipeline.run import run
from tests.local_ray import ray_for_all

Call = Callable[..., Result]


@pytest.fixture
def a_ray() -> Iterator[None]:
    """A Ray for all runs of one test, unless there is one already."""
    with ray_for_all():
        yield


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--rows", 0, "--rows is 0: it must be at least 1"),
        ("--committed", -1, "--committed is -1: it must be at least 1"),
        ("--prompts", 0, "--prompts is 0: it must be at least 1"),
        ("--repeats", 0, "--repeats is 0: it must be at least 1"),
        ("--actors", 0, "--actors is 0: it must be at least 1"),
        ("--threads", 0, "--threads is 0: it must be at least 1"),
        ("--max-tokens", 1, "--max-tokens is 1: it must be at least 2"),
        ("--record", "no/such/file.json", "--record is no/such/file.json: its folder must exist"),
        ("--model", "no-such-model", "no-such-model"),
    ],
)
def test_mistakes_are_refused(admg_batch: Call, option: str, value: object, sentence: str) -> None:
    result = admg_batch("bench", "pipeline", "--quick", option, value)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_completions_without_room_are_refused(admg_batch: Call, tiny: Path) -> None:
    result = admg_batch("bench", "pipeline", "--model", tiny, "--max-tokens", 600)
    assert result.exit_code == 2
    assert "max_tokens is 600: it must leave room for a prompt in the model's" in result.stderr


def test_rows_committed_without_a_run_are_those_of_one(tmp_path: Path) -> None:
    config = null_config(tmp_path)
    write_input(tmp_path / "in", 0, 25)
    assert commit_all(config, 10) == 3
    parts = list((tmp_path / "out").glob("*.parquet"))
    assert sorted(pq.read_metadata(part).num_rows for part in parts) == [5, 10, 10]

    report = run(config, engine_factory=NullFactory())
    assert (report.rows_total, report.rows_ok, report.rows_reused) == (25, 25, 25)
    rows = pq.read_table(tmp_path / "out").sort_by("id").to_pylist()
    assert [row["id"] for row in rows] == list(range(25))
    assert {row["completion"] for row in rows} == {"A" * 8}


def test_figures_for_people_and_for_machines(
    admg_batch: Call, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumed = {"committed": 4000, "files": 16, "rows_to_do": 256, "checking_seconds": 2.5}
    resumed |= {"until_committed_seconds": 9.75, "finishing_seconds": 3.0}
    found = {
        "overhead": {
            **{"actors": 2, "ratio": 1.03, "ratio_low": 1.01, "ratio_high": 1.04},
            **{"ratio_to_engines": 1.17, "ratio_to_engines_low": 1.17},
            **{"ratio_to_engines_high": 1.17, "startup_seconds": 8.0},
        },
        "null_engine": {
            **{"rows": 2000, "rows_per_second": 5432.1},
            **{"startup_seconds": 6.0, "finishing_seconds": 1.0},
        },
        "resume": resumed | {"nothing_to_do_seconds": 4.25},
    }
    asked: list[Any] = []

    def measure(model: str, sizes: Sizes, say: Say) -> dict[str, Any]:
        say("a step")
        asked.append((model, sizes))
        return {"date": "a day", **found}

    monkeypatch.setattr("jobs.bench.pipeline.measure", measure)
    file = tmp_path / "record.json"
    options = ("--quick", "--rows", 2000, "--model", tiny, "--record", file)
    result = admg_batch("bench", "pipeline", *options)
    assert result.exit_code == 0, result.output
    (sizes,) = (sizes for _, sizes in asked)
    assert (sizes.rows, sizes.repeats) == (2000, 1)
    assert json.loads(result.stdout.splitlines()[-1]) == found
    for figure in (
        "one engine",
        "2 engines",
        "1.170",
        "1.030",
        "1.010 to 1.040",
        "5,432 rows/s",
        "2.5 s",
        "9.8 s",
        "4.2 s",
    ):
        assert figure in result.stdout
    assert result.stderr == "a step\n"
    recorded = json.loads(file.read_text())
    assert {name: recorded[name] for name in found} == found
    assert recorded["command"].startswith("admg-batch bench pipeline --quick")
    assert recorded["date"] == "a day"


@pytest.mark.slow
def test_a_whole_run(admg_batch: Call, tiny: Path, tmp_path: Path, a_ray: None) -> None:
    file = tmp_path / "record.json"
    sizes = {
        "actors": 2,
        "prompts": 3,
        "max_tokens": 4,
        "repeats": 1,
        "rows": 300,
        "committed": 200,
    }
    options = [word for n, v in sizes.items() for word in (f"--{n.replace('_', '-')}", v)]
    result = admg_batch("bench", "pipeline", "--model", tiny, *options, "--record", file)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])

    assert list(found) == [
        *("machine", "versions", "commit", "sizes", "overhead", "null_engine", "resume"),
    ]
    assert {"cpu", "cores", "load_before"} <= set(found["machine"])
    assert {"python", "torch", "ray", "pyarrow", "model"} <= set(found["versions"])
    assert found["sizes"] == sizes | {"threads": None}
    beside = found["overhead"]
    ratio = beside["pipeline_seconds"][0] / beside["engine_seconds"][0]
    # The seconds of so small a run have few digits.
    assert beside["ratio"] == pytest.approx(ratio, rel=0.05)
    assert beside["ratio_low"] == beside["ratio"] == beside["ratio_high"]
    ratio = beside["pipeline_seconds"][0] / beside["engines_seconds"][0]
    assert beside["ratio_to_engines"] == pytest.approx(ratio, rel=0.05)
    assert beside["actors"] == 2
    null, resumed = found["null_engine"], found["resume"]
    assert null["rows_per_second"] == pytest.approx(300 / null["decoding_seconds"], rel=0.01)
    phases = ("startup_seconds", "decoding_seconds", "finishing_seconds")
    assert null["seconds"] == pytest.approx(sum(null[name] for name in phases), abs=0.01)
    assert (resumed["committed"], resumed["files"], resumed["rows_to_do"]) == (200, 2, 100)
    assert resumed["checking_seconds"] < resumed["until_committed_seconds"]

    assert "turn 1 of 1" in result.stderr and "200 committed rows" in result.stderr
    assert "rows/s" in result.stdout
    assert json.loads(file.read_text())["command"].startswith("admg-batch bench pipeline --model")
