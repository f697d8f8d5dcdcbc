"""Whatever a job file, template or shard holds: a clear sentence, exit code 2, no traceback."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import jobs.job_file
from jobs.cli import main

KEYS = [*jobs.job_file.option_names(), "sampling", "prompt", "engine", "draft", "unknown"]
VALUES = ["1", "-1", "0.5", "nan", "true", '"x"', '""', "[]", "[1]", '["x", 2]', "{}", "1979-05-27"]
LINES = st.one_of(
    st.tuples(st.sampled_from(KEYS), st.sampled_from(VALUES)).map(" = ".join),
    st.sampled_from([f"[{table}]" for table in jobs.job_file.TABLES]),
    st.text(max_size=12),
)
QUIET = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def said(arguments: list[str]) -> str:
    """What the command says about a mistake, which this must be."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert "Error: " in result.output
    return result.output


@QUIET
@given(lines=st.lists(LINES, max_size=6))
@example(lines=["input = " + "[" * 2000])
@example(lines=["engine = " + "{a = " * 2000])
@example(lines=["[" + ".".join("a" * 2000) + "]"])
@example(lines=["max_num_seqs = " + "9" * 5000])
@example(lines=["[sampling]", "seed = " + "9" * 5000])
@example(lines=["[sampling]", "seed = " + "9" * 4000])
@example(lines=["[sampling]", "temperature = 1e" + "9" * 5000])
def test_job_files_of_any_content(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "job.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    where = ["--input", str(tmp_path / "nowhere"), "--output", "o"]
    output = said(["run", "--config", str(path), *where])
    assert max(map(len, output.splitlines())) < 2000


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("input = " + "[" * 2000, "it is nested too deep"),
        ("[sampling]\nseed = " + "9" * 5000, "Exceeds the limit"),
        ("input = [", "at end of document"),
    ],
)
def test_what_toml_readers_stumble_over_is_said_with_the_file(
    tmp_path: Path, content: str, words: str
) -> None:
    path = tmp_path / "job.toml"
    path.write_text(content)
    output = said(["run", "--config", str(path)])
    last = output.splitlines()[-1]
    assert last.startswith(f"Error: {path} is not TOML") and words in last and "sys." not in last


@QUIET
@given(content=st.binary(max_size=40))
def test_job_files_of_any_bytes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "job.toml"
    path.write_bytes(content)
    said(["run", "--config", str(path), "--input", str(tmp_path / "nowhere")])


@QUIET
@given(content=st.one_of(st.text(alphabet="{}ab\n é", max_size=12).map(str.encode), st.binary()))
def test_templates_of_any_content(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "template.txt"
    path.write_bytes(content)
    where = ["--input", str(tmp_path / "nowhere"), "--output", str(tmp_path / "out")]
    said(["run", "--template", str(path), *where, "--model", str(tmp_path)])


def parquet() -> bytes:
    out = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": range(50), "prompt": [f"prompt {i}" for i in range(50)]}), out)
    return bytes(out.getvalue())


@QUIET
@given(
    changes=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 255)), max_size=4),
    cut=st.none() | st.integers(0, 5000),
)
@example(changes=[(53, 47)], cut=None)  # an integer type that Arrow does not have
def test_shards_with_footers_of_any_content(
    tmp_path: Path, changes: list[tuple[int, int]], cut: int | None
) -> None:
    """Bytes of the last thousand; where nothing that is read was hit, the model is the mistake."""
    content = bytearray(parquet())
    for place, value in changes:
        content[-1 - place] = value
    path = tmp_path / "in.parquet"
    path.write_bytes(content[:cut])
    where = ["--input", str(path), "--output", str(tmp_path / "out"), "--model", str(tmp_path)]
    output = said(["run", *where])
    assert output.splitlines()[-1].startswith("Error: ")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(20) + b"PAR1", b"id,prompt\n"])
def test_files_that_are_no_parquet(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "in.parquet"
    path.write_bytes(content)
    where = ["--input", str(path), "--output", str(tmp_path / "out"), "--model", str(tmp_path)]
    output = said(["run", *where])
    assert f"the input shard {path} cannot be read as Parquet" in output
    assert output.splitlines()[-1].startswith("Error: ")
