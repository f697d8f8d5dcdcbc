"""Until decoding begins a mistake leaves an output as it is; afterwards the run ends early."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import pipeline.dataflow
import pipeline.run
from pipeline.config import RunConfig
from pipeline.errors import PipelineError
from pipeline.run import run
from tests.pipeline.faults.oracle import config_of
from tests.pipeline.standin import StandIn

pytestmark = pytest.mark.usefixtures("ray_cluster")
UNTOUCHED = StandIn(refuses_to_load=True)
BEYOND = 2**53 + 1


def table(first: int, kept: pa.Array) -> pa.Table:
    ids = list(range(first, first + len(kept)))
    return pa.table({"id": ids, "prompt": [f"prompt of {i}" for i in ids], "n": kept})


def kept_config(folder: Path, rows: pa.Table) -> RunConfig:
    """A run over other rows than the last one's."""
    shutil.rmtree(folder / "in", ignore_errors=True)
    return config_of(folder, rows, keep=("n",))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """A finished output with whole numbers of 64 bits, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    run(kept_config(folder, table(0, pa.array([1, BEYOND]))), engine_factory=StandIn())
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    """What an output holds, but for what tells of the run that looks at it."""
    out = folder / "out"
    files = [p for p in out.rglob("*") if p.is_file()]
    own = ("lease", "heartbeat.json")
    return {str(p): p.read_bytes() for p in files if not {p.name, p.parent.name} & {*own}}


def test_committed_values_that_do_not_fit_the_wider_type_are_refused_at_once(folder: Path) -> None:
    before = content(folder)
    config = kept_config(folder, table(10, pa.array([0.5])))
    said = r"its column 'n' is of type int64 and, with the input's, double, which not every value"
    with pytest.raises(ValueError, match=said):
        run(config, engine_factory=UNTOUCHED)
    assert content(folder) == before


def test_values_of_the_input_that_do_not_fit_the_outputs_type_are_refused_at_once(
    tmp_path: Path,
) -> None:
    run(kept_config(tmp_path, table(0, pa.array([0.5]))), engine_factory=StandIn())
    before = content(tmp_path)
    config = kept_config(tmp_path, table(10, pa.array([1, BEYOND])))
    said = r"its column 'n' is of type double, which not every int64 in .*shard-0.parquet fits"
    with pytest.raises(ValueError, match=said):
        run(config, engine_factory=UNTOUCHED)
    assert content(tmp_path) == before
    config = kept_config(tmp_path, table(10, pa.array([1, 2])))
    report = run(config, engine_factory=StandIn())
    assert (report.rows_ok, report.rows_total, report.rows_not_in_input) == (3, 2, 1)
    assert run(config, engine_factory=UNTOUCHED).rows_not_in_input == 1


def test_ids_that_have_no_common_type_are_refused_at_once(tmp_path: Path) -> None:
    large = pa.table({"id": pa.array([2**63], pa.uint64()), "prompt": ["p"], "n": [1]})
    run(kept_config(tmp_path, large), engine_factory=StandIn())
    before = content(tmp_path)
    config = kept_config(tmp_path, table(0, pa.array([1])))
    with pytest.raises(ValueError, match=r"its column 'id' is of type uint64 and, with .* int64"):
        run(config, engine_factory=UNTOUCHED)
    assert content(tmp_path) == before


def test_a_layout_that_is_refused_leaves_a_finished_output_finished(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("actors is 4 with 1 GPUs each: it must fit the 1 GPUs of this machine")

    monkeypatch.setattr(pipeline.dataflow, "layout_of", refuse)
    before = content(folder)
    config = kept_config(folder, table(10, pa.array([7])))
    with pytest.raises(ValueError, match=r"^actors is 4 with 1 GPUs each"):
        run(config, engine_factory=UNTOUCHED)
    assert content(folder) == before


@pytest.mark.parametrize("error", [ValueError("a file was changed"), pa.ArrowInvalid("bad\ncast")])
def test_what_is_wrong_after_decoding_ends_the_run_early(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(pipeline.run, "finish", fail)
    first = str(error).splitlines()[0]
    with pytest.raises(PipelineError, match=rf"^the run stopped: {first}\. What is committed"):
        run(kept_config(folder, table(10, pa.array([7]))), engine_factory=StandIn())
    assert not (folder / "out" / "_SUCCESS").exists()
    with pytest.raises(type(error)):  # nothing was to be decoded, so nothing began
        run(kept_config(folder, table(10, pa.array([7]))), engine_factory=UNTOUCHED)
