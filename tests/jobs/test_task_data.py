"""Rows of tasks from files: whose columns, in which order, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.evaluation.local_data import KNOWN, load_task
from jobs.evaluation.tasks import TASKS
from tests.conftest import SHARED_DATA
from tests.jobs.task_rows import NEWS, TEN

WriteRows = Callable[..., Path]


def test_rows_by_any_of_their_names(tmp_path: Path, write_jsonl: WriteRows) -> None:
    write_jsonl(NEWS, "cnn_dailymail.jsonl")
    data = load_task("cnn_dailymail", tmp_path)
    assert data.source == "cnn_dailymail.jsonl"
    # The shortest is the worked example and stands in no other place.
    assert data.shot is not None and data.shot.text == NEWS[5]["article"]
    assert data.shot.id == "cnn_dailymail:6"
    assert sorted(e.text for e in data.examples) == sorted(r["article"] for r in NEWS[:5])
    own = [
        {"id": f"a{i}", "text": r["article"], "reference": r["highlights"]}
        for i, r in enumerate(NEWS)
    ]
    pq.write_table(pa.Table.from_pylist(own), tmp_path / "cnn_dailymail.parquet")
    again = load_task("cnn_dailymail", tmp_path)
    assert again.source == "cnn_dailymail.parquet"
    assert [e.text for e in again.examples] == [e.text for e in data.examples]
    assert {e.id for e in again.examples} == {f"a{i}" for i in range(5)}
    assert load_task("xsum", tmp_path / "cnn_dailymail.parquet").examples == again.examples


def test_more_rows_go_on_where_fewer_end(tmp_path: Path, write_jsonl: WriteRows) -> None:
    file = write_jsonl(NEWS)
    few, all_of_them = load_task("xsum", file, count=2, seed=7), load_task("xsum", file, seed=7)
    assert all_of_them.examples[:2] == few.examples
    orders = {load_task("xsum", file, seed=s).examples for s in range(8)}
    assert len(orders) > 3


def test_texts_that_are_too_long_are_left_out_and_said_so(write_jsonl: WriteRows) -> None:
    long = {"article": "word " * 801, "highlights": TEN}
    data = load_task("xsum", write_jsonl([*NEWS, long]))
    assert len(data.examples) == 5
    assert data.source == "rows.jsonl (1 of 7 longer than 800 words left out)"


def test_the_known_files_are_found(tmp_path: Path, write_jsonl: WriteRows) -> None:
    rows = [
        {"question_id": 1, "category": "writing", "turns": ["Write."]},
        *(
            {
                "question_id": 2 + i,
                "category": "summarization",
                "turns": [f"Summarize: {r['article']}"],
                "reference": [r["highlights"]],
            }
            for i, r in enumerate(NEWS)
        ),
    ]
    write_jsonl(rows, "spec_bench.jsonl")
    data = load_task("cnn_dailymail", tmp_path)
    assert data.source == "CNN/DailyMail articles of Spec-Bench"
    assert {e.text for e in data.examples} == {r["article"].strip() for r in NEWS[:5]}
    assert all(e.reference.startswith(TEN) for e in data.examples)


@pytest.mark.parametrize("name", TASKS)
def test_the_real_files_fit(name: str) -> None:
    if not (SHARED_DATA / KNOWN[name][0]).is_file():
        pytest.skip(f"needs ../shared/data/{KNOWN[name][0]}")
    data = load_task(name, SHARED_DATA)
    assert len(data.examples) >= 50
    assert (data.shot is None) == data.task.code
    if name == "xsum":
        assert max(e.reference.strip().count(". ") for e in data.examples) <= 2
    for example in data.examples:
        assert example.text.strip() and example.reference.strip()
        assert "Summarize:" not in example.text
        assert example.id and (example.test is None) != data.task.code


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("news", NEWS, "task is 'news': it must be one of cnn_dailymail, xsum, humaneval"),
        ("xsum", [{"article": "a"}], "row 1 has no reference: it must have one of reference, high"),
        ("xsum", [{"article": "", "summary": TEN}], "row 1 has no text"),
        ("xsum", [{"article": "a", "summary": "b"}], "with a reference of 8 words or more"),
        (
            "xsum",
            [{"id": 1, **NEWS[0]}, {"id": 1, **NEWS[1]}],
            "row 2 has the id '1' of an earlier",
        ),
        ("xsum", ["{"], "line 1 is not JSON"),
        ("xsum", ["[]"], "line 1 is no JSON object"),
        ("humaneval", NEWS, "row 1 has no test"),
        ("xsum", NEWS, "count is 99: "),
    ],
)
def test_what_is_wrong_with_data_is_said(
    write_jsonl: WriteRows, name: str, rows: list[Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_task(name, write_jsonl(rows), count=99)


def test_missing_data_is_said_with_the_ways_out(tmp_path: Path) -> None:
    said = "task humaneval reads humaneval.parquet, humaneval.jsonl, HumanEval.jsonl or the folder"
    with pytest.raises(ValueError, match=f"{said} humaneval, and no --data was given"):
        load_task("humaneval", None)
    with pytest.raises(ValueError, match=r"none of them.*prepare dataset openai_humaneval"):
        load_task("humaneval", tmp_path)
    broken = tmp_path / "humaneval.parquet"
    broken.write_text("no parquet")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        load_task("humaneval", tmp_path)
