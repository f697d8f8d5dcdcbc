"""The report of an output, from its files alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result

from jobs.report import read_output, rows_committed
from pipeline.errors import StorageError
from pipeline.schema import output_schema

Call = Callable[..., Result]


def row(number: int, **values: Any) -> dict[str, Any]:
    good = {
        "status": "ok",
        "completion": f"text {number}",
        "finish_reason": "stop",
        "attempts": 1,
        "prompt_tokens": 10,
        "completion_tokens": 4 * number,
        "num_spec_steps": number,
        "num_draft_tokens": 4 * number,
        "num_accepted_draft_tokens": 3 * number,
        "mean_acceptance_length": 4.0,
        "speedup": 2.0,
        "speedup_end_to_end": 1.5,
        "decode_seconds": 1.0,
        "prefill_seconds": 0.5,
        "dropped_attention_layers": [3, 4],
    }
    return {"id": f"row-{number}", "topic": "T", "row_key": bytes([number] * 16)} | good | values


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Two files as a run commits them: an error row, two good ones of different length."""
    folder = tmp_path / "out"
    folder.mkdir()
    given = pa.schema([("id", pa.string()), ("topic", pa.string())])
    schema = output_schema(given, "id", ["topic"])
    error = {"status": "error", "error_code": "prompt_too_long", "error_message": "too long"}
    nothing = dict.fromkeys(row(0).keys() - {"id", "topic", "row_key", "attempts"})
    again = {"audited": True, "audit_identical": True, "audit_speedup": 2.5}
    slow = {"speedup": 1.0, "decode_seconds": 3.0} | again | {"audit_identical": False}
    files = [[row(0, **(nothing | error))], [row(1, **again), row(3, **slow)]]
    for number, rows in enumerate(files):
        pq.write_table(pa.Table.from_pylist(rows, schema), folder / f"part-x-{number}.parquet")
    return folder


def test_the_numbers_are_of_sums_not_of_rows(output: Path) -> None:
    report = read_output(str(output))
    assert (report.rows, report.rows_ok, report.rows_error) == (3, 2, 1)
    assert not report.complete
    assert (report.prompt_tokens, report.completion_tokens) == (20, 16)
    assert report.mean_acceptance_length == 4.0
    assert report.draft_acceptance_rate == 0.75
    # (2 x 1 s + 1 x 3 s) of plain decoding in 4 s
    assert report.speedup == pytest.approx(1.25)
    assert report.errors_by_code == {"prompt_too_long": 1}
    assert report.finish_reasons == {"stop": 2}
    assert report.speedup_percentiles["p50"] == pytest.approx(1.5)
    assert report.audit == {
        **{"rows": 2, "identical": 1, "near_ties": 0, "estimated_speedup": pytest.approx(1.25)},
        **{"true_speedup": 2.5, "true_speedup_standard_error": 0.0},
    }
    assert report.sample["id"] == "row-1"
    assert rows_committed(str(output)) == 3


def test_the_table_and_the_sample_are_readable(admg_batch: Call, output: Path) -> None:
    result = admg_batch("report", output)
    assert result.exit_code == 0, result.output
    for part in (
        *("2 ok, 1 error, not complete yet", "1 prompt_too_long", "20 in prompts, 16 in"),
        *("4.00 tokens per target pass", "1.25 decoding", str(output)[-20:]),
        *("(estimated: 1.25)", "2 rows decoded again plainly, 1 identical", "2.50 ± 0.00 or more"),
        *("id: row-1", "topic: T", "text 1", "2 attention layers dropped"),
    ):
        assert part in result.output


def test_a_finished_output_says_so(output: Path) -> None:
    (output / "_SUCCESS").touch()
    assert read_output(str(output)).complete


def test_json_holds_the_same(admg_batch: Call, output: Path) -> None:
    result = admg_batch("report", output, "--json")
    data = json.loads(result.stdout)
    assert data == json.loads(json.dumps(read_output(str(output)).to_dict()))
    assert data["rows_error"] == 1 and data["sample"]["completion"] == "text 1"


def test_a_completion_cannot_steer_the_terminal(
    admg_batch: Call, tmp_path: Path, output: Path
) -> None:
    evil = "\x1b[2J[bold]tags[/bold] stay [/] as text"
    folder = tmp_path / "evil"
    folder.mkdir()
    schema = pq.read_schema(output / "part-x-0.parquet")
    table = pa.Table.from_pylist([row(1, completion=evil, topic=evil)], schema)
    pq.write_table(table, folder / "a.parquet")
    text = admg_batch("report", folder).output
    assert "\x1b" not in text
    assert text.count("[bold]tags[/bold] stay [/] as text") == 2


@pytest.mark.parametrize("kind", ["missing", "empty", "other"])
def test_what_is_no_output_is_refused(admg_batch: Call, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / kind
    if kind != "missing":
        folder.mkdir()
    if kind == "other":
        pq.write_table(pa.table({"id": [1]}), folder / "a.parquet")
    result = admg_batch("report", folder)
    assert result.exit_code == 2
    expected = "a.parquet has no column" if kind == "other" else "holds no results"
    assert expected in result.output and str(folder) in result.output


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotADirectoryError(20, "no folder"), 2),
        (PermissionError(13, "not for you"), 4),
        (StorageError("s3://b/out cannot be read"), 4),
    ],
)
def test_what_storage_raises_is_one_sentence(
    admg_batch: Call, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    def fail(_: str) -> None:
        raise error

    monkeypatch.setattr("jobs.report.read_output", fail)
    result = admg_batch("report", "out")
    assert result.exit_code == code
    said = str(error.args[-1])
    assert result.stderr == f"Error: {said}\n"


def test_a_file_is_no_output(admg_batch: Call, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    result = admg_batch("report", file)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and str(file) in result.stderr
