"""Input and output lie apart: neither is inside the other, by whatever path it is named."""

from __future__ import annotations

from pathlib import Path

import pytest

import pipeline.places
import pipeline.storage
from pipeline.config import RunConfig
from pipeline.errors import StorageError
from pipeline.file_systems import resolve
from pipeline.job import check_job
from pipeline.retry import Patience
from pipeline.storage import Store
from tests.pipeline.conftest import write_shards
from tests.pipeline.standin import StandIn

APART = "it must lie outside of the input"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with inputs, and a link to one."""
    write_shards(tmp_path / "in" / "day=1", [{"id": [1], "prompt": ["x"]}])
    write_shards(tmp_path / "out" / "in", [{"id": [1], "prompt": ["x"]}])
    (tmp_path / "link").symlink_to("in")
    (tmp_path / "elsewhere").symlink_to("out/in")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(given: str, output: str) -> None:
    config = RunConfig(input=(given,), output=output, model="stand-in", storage_patience_seconds=0)
    check_job(config, StandIn())


@pytest.mark.parametrize(
    ("given", "output"),
    [
        ("in", "in/out"),
        ("in", "in"),
        ("in", "link/out"),
        ("link", "{here}/in/out"),
        ("in", "out/../in/out"),
        ("file://{here}/in", "in/out"),
        ("in/**/*.parquet", "in/out"),
        ("in/*", "in/out"),
        ("in/*/*.parquet", "in/out"),
        ("link/*/*.parquet", "in/out"),
        ("*/day=1", "in/day=1/out"),
        ("out/in", "out"),
        ("out/in/*.parquet", "out"),
        ("elsewhere", "out"),
        ("out/in/shard-0.parquet", "{here}/out"),
        ("ou?/in", "."),
    ],
)
def test_one_inside_the_other_is_refused(here: Path, given: str, output: str) -> None:
    with pytest.raises(ValueError, match=APART):
        check(given.format(here=here), output.format(here=here))


@pytest.mark.parametrize(
    ("given", "output"),
    [
        ("in", "other"),
        ("in", "in-out"),
        ("in/day=*", "in/out"),
        ("in/day=1/*.parquet", "in/out"),
        ("in/*/*.parquet", "other"),
        ("out/i*", "out-1"),
    ],
)
@pytest.mark.usefixtures("here")
def test_beside_each_other_is_fine(given: str, output: str) -> None:
    check(given, output)


def test_a_storage_that_is_reached_late_is_waited_for(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 asks for the bucket's region before anything else."""
    left = [3]

    def flaky(uri: str, one_put: bool = False) -> tuple[object, str]:
        left[0] -= 1
        if left[0] % 2 == 0:
            raise OSError("AWS Error UNKNOWN (HTTP status 503) during HeadBucket operation")
        return resolve(uri, one_put)

    monkeypatch.setattr(pipeline.storage, "resolve", flaky)
    monkeypatch.setattr(pipeline.places, "resolve", flaky)
    store = Store(str(here / "in"), patience=Patience(60, first=0.001))
    assert [f.base_name for f in store.listing()] == ["day=1"]
    config = RunConfig(input=("in",), output="other", model="stand-in")
    left[0] = 6
    check_job(config, StandIn())

    def refusing(*_: object) -> None:
        raise OSError("AWS Error UNKNOWN (HTTP status 503) during HeadBucket operation")

    monkeypatch.setattr(pipeline.storage, "resolve", refusing)
    with pytest.raises(StorageError, match=r"reaching .* failed .*503"):
        Store("other", patience=Patience(0)).exists("x")
    monkeypatch.setattr(pipeline.places, "resolve", refusing)
    with pytest.raises(StorageError, match=r"looking for in failed .*503"):
        check("in", "other")
