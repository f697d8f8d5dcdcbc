"""Faults 2, 6 and 7 with the demo model: its own texts are the oracle.

In float32, where a row's text is a function of the row. In bfloat16 it may depend on the company
too: a row that is tried again alone goes through matrix products of another shape, whose sums may
be rounded in another order, and 8 bits are coarse enough to turn round two tokens that are almost
equally likely.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from admg.config import EngineConfig, SamplingParams
from admg.request import Completion, Request
from pipeline.config import PromptConfig, RunConfig
from pipeline.factory import EngineLike, ModelFactory
from pipeline.run import run
from tests.pipeline.conftest import write_shards
from tests.pipeline.faults.faulty import happens, times
from tests.pipeline.faults.wrapped import Wrapped

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.usefixtures("ray_cluster"),
]
ROWS = 14


class Faulty(Wrapped):
    """The real engine, and a fault when it has made a few steps with the marked prompt."""

    def __init__(self, engine: Any, factory: FaultyModel) -> None:
        super().__init__(engine)
        self._factory = factory
        self._marked: int | None = None
        self._steps = 0

    def submit(self, request: Request) -> int:
        handle = int(self._engine.submit(request))
        # The longest prompt, whatever its tokens are.
        if len(request.prompt_token_ids) > self._factory.marked_tokens:
            self._marked = handle
        return handle

    def step(self) -> list[Completion]:
        done: list[Completion] = self._engine.step()
        self._steps += 1
        if self._marked in [c.handle for c in done]:
            self._marked = None
        fault, folder = self._factory.fault, self._factory.folder
        if fault == "kill once" and self._steps == 4 and happens(folder, "kill", 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "poison" and self._marked is not None:
            os._exit(1)
        if fault == "hang" and self._marked is not None:
            time.sleep(3600)
        return done


@dataclass(frozen=True)
class FaultyModel(ModelFactory):
    """The default factory, whose engines have a fault."""

    fault: str = ""
    folder: str = ""
    marked_tokens: int = 150

    def build(self, max_num_seqs: int | None = None) -> EngineLike:
        happens(self.folder, "build", 99)
        return Faulty(ModelFactory.build(self, max_num_seqs), self)


def prompt(i: int) -> str:
    return f"Explain the number {i}. " + ("It has many uses, and some of them are old. " * 20) * (
        i == 5
    )


@pytest.fixture(scope="module")
def base(demo_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("real")
    texts = [prompt(i) for i in range(ROWS)]
    write_shards(folder / "in", [pa.table({"id": list(range(ROWS)), "prompt": texts})])
    return RunConfig(
        input=(str(folder / "in"),),
        output=str(folder / "undisturbed"),
        model=str(demo_model_path),
        dtype="float32",  # see above
        prompt=PromptConfig(mode="chat"),
        sampling=SamplingParams(max_tokens=12, temperature=0.7, seed=5),
        engine=EngineConfig(max_num_seqs=4, max_model_len=512),
        rows_per_block=4,
        max_crashes=1,
    )


def rows_of(config: RunConfig) -> dict[int, dict[str, Any]]:
    table = pq.read_table(config.output)
    rows = {row["id"]: row for row in table.to_pylist()}
    assert len(rows) == table.num_rows
    return rows


@pytest.fixture(scope="module")
def undisturbed(base: RunConfig, ray_cluster: None) -> dict[int, str]:
    run(base)
    return {i: row["completion"] for i, row in rows_of(base).items()}


@pytest.mark.parametrize(
    ("fault", "code"), [("kill once", None), ("poison", "crashed"), ("hang", "deadline")]
)
def test_real_model(
    base: RunConfig,
    undisturbed: dict[int, str],
    tmp_path: Path,
    fault: str,
    code: str | None,
) -> None:
    config = replace(base, output=str(tmp_path / "out"))
    if fault == "hang":
        config = replace(config, row_deadline_seconds=15.0, token_deadline_seconds=0.02)
    whole = ModelFactory.of(config)
    factory = FaultyModel(whole.path, whole.engine, whole.dtype, fault=fault, folder=str(tmp_path))
    run(config, engine_factory=factory)
    rows = rows_of(config)
    assert sorted(rows) == list(range(ROWS))
    wrong = {i: row["error_code"] for i, row in rows.items() if row["status"] != "ok"}
    assert wrong == ({} if code is None else {5: code})
    assert {i: row["completion"] for i, row in rows.items() if i not in wrong} == {
        i: text for i, text in undisturbed.items() if i not in wrong
    }
    assert times(tmp_path, "build") >= 2
