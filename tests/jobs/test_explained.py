"""What the drafter auto went by, from the actor to the terminal: `run --explain`, `report`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from jobs.explained import MOST_SHOWN, explanation_table, rounds_line
from jobs.job_file import JobFile
from jobs.params import run_config
from jobs.report import read_output
from pipeline.choices import CHOICES
from tests.jobs.report_outputs import make_output
from tests.local_ray import ray_for_all

Call = Callable[..., Result]
FOUND: dict[str, Any] = {
    "rounds": {"lookup": 30, "plain": 60, "self": 10},
    "costs": {"target": [[1, 64, 1, 0.02], [4, 64, 5, 0.0512]], "self, 50% limited": []},
    "lookup": {"5 tokens": {"first": 0.5, "later": 0.75}},
    "trust": {"lookup at 4": 0.875},
    "released_bytes": 3 * 2**20,
}


@pytest.fixture(scope="module")
def one_ray() -> Iterator[None]:
    with ray_for_all():
        yield


def keep(output: Path, actors: int) -> None:
    content = {"actors": [{"actor": f"a{i}/1", **FOUND} for i in range(actors)]}
    (output / CHOICES).write_text(json.dumps(content))


@pytest.mark.slow
def test_a_run_with_auto_explains_itself_and_so_does_its_report(
    admg_batch: Call, shards: Path, tiny: Path, tmp_path: Path, one_ray: None
) -> None:
    """A quarter of a minute: `python -m pytest -m slow tests/jobs/test_explained.py`."""
    words = ["--input", shards, "--output", tmp_path / "out", "--model", tiny]
    words += ["--drafter", "auto", "--max-num-seqs", 2, "--max-tokens", 12, "--explain"]
    done = admg_batch("run", *words)
    assert done.exit_code == 0, done.output
    assert "drafter auto; rounds: " in done.output and "tokens each" in done.output
    (actor,) = json.loads((tmp_path / "out" / CHOICES).read_text())["actors"]
    assert sum(actor["rounds"].values()) > 0
    # One sequence and two, a short context and a long one, passes of 1, 2, 5 and 9 tokens.
    assert len(actor["costs"]["target"]) == 2 * 2 * 4
    report = admg_batch("report", tmp_path / "out")
    assert "rounds by choice" in report.output and "tokens each" not in report.output
    assert "tokens each" in admg_batch("report", tmp_path / "out", "--explain").output
    assert read_output(str(tmp_path / "out")).choices == actor["rounds"]


def test_choices_are_the_sum_of_all_actors_and_few_are_shown(
    admg_batch: Call, tmp_path: Path
) -> None:
    output = make_output(tmp_path / "out", 50)
    keep(output, MOST_SHOWN + 2)
    rounds = {name: (MOST_SHOWN + 2) * n for name, n in FOUND["rounds"].items()}
    assert read_output(str(output)).choices == rounds
    shown = admg_batch("report", output, "--explain").output
    assert "plain 360 (60%)" in shown and "and 2 more actors, in _admg/choices.json" in shown
    assert shown.count("drafter auto, actor") == MOST_SHOWN
    page = tmp_path / "page.html"
    assert admg_batch("report", output, "--html", page).exit_code == 0
    assert "lookup 180" in page.read_text() and "report --explain" in page.read_text()


def test_outputs_without_choices_say_so(admg_batch: Call, tmp_path: Path) -> None:
    output = make_output(tmp_path / "out", 50)
    done = admg_batch("report", output, "--explain")
    assert done.exit_code == 0 and "No choices to explain" in done.output
    assert "rounds by choice" not in done.output
    assert admg_batch("report", output, output, "--explain").exit_code == 2


@pytest.mark.parametrize("content", ["{", "[]", '{"actors": [{"rounds": {}}]}', '{"actors": 3}'])
def test_what_somebody_else_has_written_is_one_sentence(
    admg_batch: Call, tmp_path: Path, content: str
) -> None:
    output = make_output(tmp_path / "out", 50)
    (output / CHOICES).write_text(content)
    done = admg_batch("report", output)
    assert done.exit_code == 2 and "choices.json was changed by somebody else" in done.output
    assert "Traceback" not in done.output


def test_the_table_says_what_was_given_back() -> None:
    table = explanation_table("auto", FOUND)
    assert "self-drafts cannot pay here: 3 MiB of smaller weights given back" in str(table.title)
    assert rounds_line({}) == "none yet" and rounds_line({"plain": 4}) == "plain 4 (100%)"


def test_only_auto_has_something_to_explain() -> None:
    flags = {"input": ["in"], "output": "out", "model": "m", "explain": True}
    assert run_config(flags, JobFile()).explain
    with pytest.raises(ValueError, match="--explain is True: it must be false with the drafter"):
        run_config(flags | {"drafter": "admg"}, JobFile())
