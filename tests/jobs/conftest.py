"""What the tests of the command line share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from jobs.bench.gpu.tiny_model import byte_tokenizer
from jobs.cli import main


@pytest.fixture
def admg_batch() -> Callable[..., Result]:
    """Runs `admg-batch` in this process."""

    def call(*args: object) -> Result:
        return CliRunner(env={"COLUMNS": "120"}).invoke(
            main, [str(a) for a in args], prog_name="admg-batch"
        )

    return call


@pytest.fixture(scope="session")
def tiny(llama_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama with a tokenizer of one token a byte."""
    folder = tmp_path_factory.mktemp("bench") / "tiny"
    shutil.copytree(llama_checkpoint, folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two small prompt shards."""
    folder = tmp_path / "prompts"
    folder.mkdir()
    for number in range(2):
        rows = [
            {"id": f"{number}-{i}", "prompt": f"Count to {i + 2}:", "lang": "en"} for i in range(3)
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"part-{number}.parquet")
    return folder


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows as JSON lines; strings are written as they stand."""

    def write(rows: list[Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write
