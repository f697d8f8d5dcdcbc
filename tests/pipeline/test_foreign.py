"""Errors of fsspec's clients: what may pass is tried again, the rest is told by its shard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from pipeline.config import RunConfig
from pipeline.errors import StorageError
from pipeline.file_systems import resolve
from pipeline.retry import Patience
from pipeline.run import run
from pipeline.shards import BadShard, Shard, find_shards
from pipeline.source import open_source
from pipeline.storage import Store
from tests.pipeline.conftest import write_shards
from tests.pipeline.faults.oracle import check_output, config_of, prompts
from tests.pipeline.standin import StandIn


class ServerDisconnectedError(Exception):
    """As aiohttp's."""


class ClientResponseError(Exception):
    """As aiohttp's."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status}, message='such is life'")
        self.status = status


class EndpointConnectionError(Exception):
    """As botocore's."""


class ClientError(Exception):
    """As botocore's."""

    def __init__(self, status: int) -> None:
        super().__init__("An error occurred")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


class Flaky(LocalFileSystem):  # type: ignore[misc]
    """The local disk, behind a client that raises the errors it is given first."""

    protocol = "flaky"
    errors: list[Exception] = []  # noqa: RUF012
    in_files = False

    def info(self, path: str, **more: Any) -> Any:
        if self.errors and not self.in_files:
            raise self.errors.pop()
        return super().info(path, **more)

    def open(self, path: str, mode: str = "rb", **more: Any) -> Any:
        return File(super().open(path, mode, **more), self)


class File:
    """A file of it."""

    def __init__(self, inner: Any, owner: Flaky) -> None:
        self._inner, self._owner = inner, owner

    def read(self, *args: Any) -> bytes:
        if self._owner.errors:
            raise self._owner.errors.pop()
        return bytes(self._inner.read(*args))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


PASSING = [
    ServerDisconnectedError("Server disconnected"),
    ClientResponseError(503),
    ClientResponseError(429),
    EndpointConnectionError('Could not connect to the endpoint URL: "x"'),
    ClientError(500),
]


@pytest.fixture
def uri(tmp_path: Path) -> Iterator[str]:
    """A folder with one shard, by that client."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    write_shards(tmp_path, [{"id": [1], "prompt": ["x"]}])
    Flaky.errors, Flaky.in_files = [], False
    yield f"flaky://{tmp_path}"
    Flaky.errors = []


@pytest.mark.parametrize("error", PASSING, ids=repr)
@pytest.mark.parametrize("in_files", [False, True])
def test_foreign_errors_that_pass_are_sat_out(uri: str, error: Exception, in_files: bool) -> None:
    patience = Patience(60, first=0.001)
    store = Store(uri, patience=patience)
    Flaky.in_files = in_files
    Flaky.errors[:] = [error, error]
    assert store.read("shard-0.parquet").startswith(b"PAR1")
    assert not Flaky.errors
    (shard,) = find_shards([uri], patience)
    Flaky.errors[:] = [error, error]
    assert [batch.num_rows for batch in shard.batches([0], ["id"], 10)] == [1]
    assert not Flaky.errors
    Flaky.errors[:] = [error] * 10_000
    with pytest.raises(StorageError, match=type(error).__name__):
        Store(uri, patience=Patience(0)).read("shard-0.parquet")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ClientResponseError(404), FileNotFoundError),
        (ClientResponseError(403), PermissionError),
        (ClientResponseError(400), OSError),
        (type("NoCredentials", (Exception,), {})("none found"), OSError),
    ],
    ids=repr,
)
def test_foreign_errors_that_last_are_told_at_once(
    uri: str, error: Exception, kind: type[OSError]
) -> None:
    Flaky.in_files = True
    Flaky.errors[:] = [error]
    with pytest.raises(kind, match=type(error).__name__) as caught:
        Store(uri).read("shard-0.parquet")
    assert caught.value.__cause__ is error
    Flaky.errors[:] = [error]
    with pytest.raises(BadShard, match=type(error).__name__):
        Shard(uri, f"{resolve(uri)[1]}/shard-0.parquet").open()


def test_such_a_storage_is_one_file_system(uri: str) -> None:
    system, path = resolve(uri)
    assert system.equals(resolve(f"{uri}/x")[0])
    assert len(find_shards([uri, f"{uri}/*.parquet"])) == 1
    with system.handler.fs.open(f"{path}/shard-0.parquet", "rb") as stream:
        assert stream.read(4) == b"PAR1"
    config = RunConfig(input=(uri,), output="out", model="model")
    assert open_source(config).scan(config).rows == 1


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_on_it_and_its_resume(tmp_path: Path) -> None:
    """`local://` is a disk to fsspec and nothing to pyarrow: every process comes to it that way."""
    table = prompts(24)
    config = config_of(tmp_path, table.slice(0, 16))
    there = f"local://{tmp_path}"
    config = replace(config, input=(f"{there}/in",), output=f"{there}/out", max_rows_per_file=0)
    assert run(config, engine_factory=StandIn()).rows_ok == 16
    write_shards(tmp_path / "in", [table.slice(0, 16), table.slice(16)])
    log = StandIn(log=str(tmp_path / "log"))
    assert run(config, engine_factory=log).rows_reused == 16
    assert len(log.submitted()) == 8
    check_output(replace(config, output=str(tmp_path / "out")), table)
