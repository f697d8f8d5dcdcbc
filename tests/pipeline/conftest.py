"""One Ray for all tests of the data plane, and small inputs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.bench.gpu.tiny_model import byte_tokenizer
from tests.local_ray import start_ray
from tests.pipeline.s3 import S3Server, environment, free_port, s3_server

CHAT = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}|{% endfor %}a:"


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    """Where the S3 server is, if one runs: known to this process, and to Ray's when they start."""
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(port).items():
            patch.setenv(name, value)
        yield port


@pytest.fixture(scope="session")
def s3_process(s3_port: int) -> Iterator[S3Server]:
    with s3_server(s3_port) as server:
        yield server


@pytest.fixture
def s3(s3_process: S3Server) -> S3Server:
    """A real S3 server, which can be told to refuse requests."""
    s3_process.forgive()
    return s3_process


@pytest.fixture(scope="session")
def ray_cluster(s3_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A local Ray that all tests share."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        # Else its workers, at 15, get what other tests and programs leave over.
        patch.setenv("RAY_worker_niceness", "0")
        # Models by URI are copied to the machine of an actor, which is to be none of the user's.
        patch.setenv("ADMG_BATCH_CACHE", str(tmp_path_factory.mktemp("actors-cache")))
        start_ray()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_chat_model(llama_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama with a tokenizer of single bytes and a chat template."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(llama_checkpoint, folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


def write_shards(folder: Path, shards: Sequence[pa.Table | Mapping[str, Any]]) -> list[Path]:
    """Write tables as shard-0.parquet, shard-1.parquet, and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, shard in enumerate(shards):
        paths.append(folder / f"shard-{i}.parquet")
        table = shard if isinstance(shard, pa.Table) else pa.table(shard)
        pq.write_table(table, paths[-1])
    return paths
