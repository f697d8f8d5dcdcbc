"""One Ray for all tests of the data plane, and small inputs."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray that all tests share."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()


def write_shards(folder: Path, shards: Sequence[pa.Table | Mapping[str, Any]]) -> list[Path]:
    """Write tables as shard-0.parquet, shard-1.parquet, and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, shard in enumerate(shards):
        paths.append(folder / f"shard-{i}.parquet")
        table = shard if isinstance(shard, pa.Table) else pa.table(shard)
        pq.write_table(table, paths[-1])
    return paths
