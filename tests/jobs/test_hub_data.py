"""Rows of tasks from a hub, as `prepare dataset` writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import Result

from jobs.evaluation.local_data import load_task
from tests.jobs.task_rows import CODE, NEWS, TEN

Call = Callable[..., Result]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A hub that has `rows` and remembers how it was asked."""
    import datasets

    made = SimpleNamespace(rows=[{**r, "id": f"n{i}"} for i, r in enumerate(NEWS)], asked=[])

    def load(*args: object, **options: object) -> Any:
        made.asked.append((args, options))
        return datasets.Dataset.from_list(made.rows).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    return made


def test_prepared_data_sets_are_prompts_and_data(
    admg_batch: Call, tmp_path: Path, hub: SimpleNamespace
) -> None:
    out = tmp_path / "data" / "cnn_dailymail"
    args = ("prepare", "dataset", "cnn_dailymail", "--limit", 3, "--seed", 1, "--output", out)
    assert admg_batch(*args).exit_code == 0
    ((args_given, options),) = hub.asked
    assert args_given == ("abisee/cnn_dailymail", "3.0.0")
    assert options.pop("revision") and options == {"split": "test", "streaming": True}
    rows = pq.read_table(out).to_pylist()
    assert [sorted(row) for row in rows] == [["id", "prompt", "reference", "text"]] * 3
    assert rows[0]["prompt"].startswith("Summarise") and rows[0]["text"] in rows[0]["prompt"]
    data = load_task("cnn_dailymail", tmp_path / "data")
    assert data.shot is not None
    assert {e.id for e in (*data.examples, data.shot)} == {row["id"] for row in rows}


def test_the_seed_is_the_order_of_prepared_rows(
    admg_batch: Call, tmp_path: Path, hub: SimpleNamespace
) -> None:
    orders = set()
    for number, seed in enumerate((0, 0, 1, 2, 3)):
        out = tmp_path / str(number)
        args = ("--limit", 4, "--seed", seed, "--output", out)
        assert admg_batch("prepare", "dataset", "xsum", *args).exit_code == 0
        orders.add(tuple(pq.read_table(out)["id"].to_pylist()))
    assert 2 <= len(orders) <= 4


def test_rows_without_a_text_are_left_out_and_told(
    admg_batch: Call, tmp_path: Path, hub: SimpleNamespace
) -> None:
    hub.rows = [{"id": "e", "article": " ", "highlights": TEN}, *hub.rows]
    args = ("prepare", "dataset", "xsum", "--output", tmp_path / "x")
    result = admg_batch(*args)
    assert "has no text" in result.output and "(1 so far)" in result.output
    assert {f"n{i}" for i in range(6)} == set(pq.read_table(tmp_path / "x")["id"].to_pylist())


def test_an_output_in_use_is_refused_before_anything_is_read(
    admg_batch: Call, tmp_path: Path, hub: SimpleNamespace
) -> None:
    (tmp_path / "part-00000.parquet").touch()
    result = admg_batch("prepare", "dataset", "xsum", "--output", tmp_path)
    assert result.exit_code == 2 and "already holds 1 Parquet files" in result.output
    assert hub.asked == []


def test_prepared_base_prompts_have_a_worked_example(
    admg_batch: Call, tmp_path: Path, hub: SimpleNamespace
) -> None:
    args = (
        "prepare",
        "dataset",
        "xsum",
        "--form",
        "base",
        "--limit",
        4,
        "--output",
        tmp_path / "x",
    )
    assert admg_batch(*args).exit_code == 0
    rows = pq.read_table(tmp_path / "x").to_pylist()
    assert len(rows) == 4
    firsts = {row["prompt"].partition("\nSummary:")[0] for row in rows}
    assert len(firsts) == 1 and firsts.isdisjoint(f"Article: {row['text']}" for row in rows)


def test_prepared_code_keeps_its_tests(
    admg_batch: Call, tmp_path: Path, hub: SimpleNamespace
) -> None:
    hub.rows = [CODE, {**CODE, "task_id": "HumanEval/1"}]
    out = tmp_path / "humaneval"
    args = ("prepare", "dataset", "openai_humaneval", "--form", "base", "--output", out)
    assert admg_batch(*args).exit_code == 0
    (row, _) = sorted(pq.read_table(out).to_pylist(), key=lambda row: str(row["id"]))
    assert row["prompt"] == row["text"] == CODE["prompt"]
    assert row["entry_point"] == "twice"
    data = load_task("humaneval", tmp_path)
    assert len(data.examples) == 2 and data.examples[0].test == CODE["test"]


def test_without_a_network_there_is_one_sentence(
    admg_batch: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def load(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'EdinburghNLP/xsum' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    result = admg_batch("prepare", "dataset", "xsum", "--output", tmp_path / "x")
    assert result.exit_code == 2 and "Traceback" not in result.output
    (line,) = [line for line in result.output.splitlines() if line.startswith("Error")]
    assert "Couldn't reach 'EdinburghNLP/xsum' on the Hub; without a network a file" in line
    assert "xsum.jsonl or xsum.parquet" in line
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ("xsum", "--keep", "text"),
            "--keep is given: it is not for xsum, whose columns are fixed",
        ),
        (("xsum", "--subset", "a"), "--subset is given: it is not for xsum"),
        (("xsum", "--seed", "-1"), "--seed is -1: it must be between 0 and 4294967295"),
        (("xsum", "--limit", "0"), "--limit is 0: it must be at least 1"),
        (("other/xsum", "--seed", "1"), "--seed is given: it is for cnn_dailymail, xsum, openai_h"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    admg_batch: Call, tmp_path: Path, args: tuple[str, ...], message: str
) -> None:
    result = admg_batch("prepare", "dataset", *args, "--output", tmp_path / "x")
    assert result.exit_code == 2
    assert message in result.output


def test_a_folder_of_a_tasks_name_is_a_data_set(
    admg_batch: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    datasets.Dataset.from_list([{"prompt": "a"}]).save_to_disk("xsum")
    result = admg_batch("prepare", "dataset", "xsum", "--output", "out")
    assert result.exit_code == 0, result.output
    assert pq.read_table("out").to_pylist() == [{"id": "xsum/train:1", "prompt": "a"}]
