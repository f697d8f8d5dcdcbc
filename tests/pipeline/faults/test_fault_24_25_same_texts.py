"""Faults 24 and 25: neither drafting nor where, when and with whom a row is decoded changes it.

A tiny real model, and rows that bring their own parameters: half of them greedy, half of them drawn
at temperature 1, some with room for one token only, which nobody can draft.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from admg.config import DraftConfig, EngineConfig, SamplingParams
from admg.draft_rules import DropRule
from admg.request import Completion, Request
from pipeline.config import PromptConfig, RunConfig
from pipeline.factory import EngineLike, ModelFactory
from pipeline.manifest import MANIFEST
from pipeline.run import run
from tests.pipeline.conftest import write_shards
from tests.pipeline.faults.killing import committed, kill_when
from tests.pipeline.faults.wrapped import Wrapped

pytestmark = pytest.mark.usefixtures("ray_cluster")
ROWS = 24
TABLE = pa.table(
    {
        "id": [f"row {i}" for i in range(ROWS)],
        "prompt": ["tell me about " + "the sea and " * (i % 5) + str(i) for i in range(ROWS)],
        "temperature": [float(i % 2) for i in range(ROWS)],
        "max_tokens": [1 if i % 8 < 2 else 24 for i in range(ROWS)],
    }
)
SELF_DRAFTING = DraftConfig(draft_tokens=3, drop=DropRule(count=2))
COUNTS = (
    "prompt_tokens",
    "completion_tokens",
    "num_spec_steps",
    "num_draft_tokens",
    "num_accepted_draft_tokens",
)


class Recorded(Wrapped):
    """The real engine; every completion's token ids are written down."""

    def __init__(self, engine: Any, factory: RecordedModel) -> None:
        super().__init__(engine)
        self._factory = factory

    def submit(self, request: Request) -> int:
        return int(self._engine.submit(request))

    def step(self) -> list[Completion]:
        time.sleep(self._factory.pause)
        done: list[Completion] = self._engine.step()
        with open(Path(self._factory.folder) / "tokens", "a") as log:
            log.writelines(json.dumps([c.key, c.token_ids]) + "\n" for c in done)
        return done


@dataclass(frozen=True)
class RecordedModel(ModelFactory):
    """The default factory, with engines that write down what they do, and may be slow."""

    folder: str = ""
    pause: float = 0.0

    def build(self, max_num_seqs: int | None = None) -> EngineLike:
        return Recorded(ModelFactory.build(self, max_num_seqs), self)


def recorded(config: RunConfig, **changes: Any) -> RecordedModel:
    folder = Path(config.output).parent
    folder.mkdir(exist_ok=True)
    return RecordedModel(config.model, config.engine, config.dtype, folder=str(folder), **changes)


def tokens_of(config: RunConfig) -> dict[str, list[int]]:
    """By row key; a row that was decoded more than once got the same each time."""
    found: dict[str, list[list[int]]] = defaultdict(list)
    for line in (Path(config.output).parent / "tokens").read_text().splitlines():
        key, ids = json.loads(line)
        found[key].append(ids)
    assert all(ids == several[0] for several in found.values() for ids in several)
    return {key: several[0] for key, several in found.items()}


def rows_of(config: RunConfig) -> dict[str, dict[str, Any]]:
    table = pq.read_table(config.output)
    assert sorted(table["id"].to_pylist()) == sorted(TABLE["id"].to_pylist())
    return {row["id"]: row for row in table.to_pylist()}


def texts_of(config: RunConfig) -> dict[str, Any]:
    return {i: (r["completion"], r["finish_reason"]) for i, r in rows_of(config).items()}


@pytest.fixture(scope="module")
def plain(
    tiny_chat_model: Path, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> RunConfig:
    """A finished run without drafting."""
    folder = tmp_path_factory.mktemp("plain")
    write_shards(folder / "in", [TABLE.slice(0, 9), TABLE.slice(9)])
    config = RunConfig(
        input=(str(folder / "in"),),
        output=str(folder / "out"),
        model=str(tiny_chat_model),
        dtype="float32",
        prompt=PromptConfig(mode="chat"),
        row_parameters=("temperature", "max_tokens"),
        sampling=SamplingParams(top_p=0.95, seed=11),
        engine=EngineConfig(max_num_seqs=3, draft=DraftConfig(drafter="none")),
        rows_per_block=8,
        threads=1,
    )
    report = run(config, engine_factory=recorded(config))
    assert (report.rows_ok, report.draft_acceptance_rate) == (ROWS, None)
    return config


def numbers_in(value: object) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from numbers_in(inner)
    if isinstance(value, float):
        yield value


def check_statistics(config: RunConfig) -> dict[str, int]:
    """Of rows and of the job: they add up, and are null where there is nothing to divide by."""
    rows = list(rows_of(config).values())
    for row in rows:
        steps, drafted = row["num_spec_steps"], row["num_draft_tokens"]
        accepted = row["num_accepted_draft_tokens"]
        histogram = row["acceptance_histogram"]
        assert sum(histogram) == steps
        assert sum(i * count for i, count in enumerate(histogram)) == accepted
        assert sum(d["tokens"] for d in row["drafter_tokens"]) == drafted
        rate, length = row["draft_acceptance_rate"], row["mean_acceptance_length"]
        assert rate == pytest.approx(accepted / drafted) if drafted else rate is None
        # The first token is the prefill's.
        made = row["completion_tokens"] - 1
        assert length == pytest.approx(made / steps) if steps else length is None
    # JSON has no word for what is not a number, and Python's has.
    manifest = json.loads((Path(config.output) / MANIFEST).read_bytes())
    assert all(map(math.isfinite, numbers_in([rows, manifest])))
    sums = {name: sum(row[name] for row in rows) for name in COUNTS}
    assert sums == {name: manifest["totals"][name] for name in COUNTS}
    ratios = manifest["statistics"]
    drafted, accepted = sums["num_draft_tokens"], sums["num_accepted_draft_tokens"]
    rate = pytest.approx(accepted / drafted) if drafted else None
    assert ratios["draft_acceptance_rate"] == rate
    made = sums["completion_tokens"] - ROWS
    assert ratios["mean_acceptance_length"] == pytest.approx(made / sums["num_spec_steps"])
    return sums


def test_plain_rows_are_those_of_an_engine_that_has_no_other_row(plain: RunConfig) -> None:
    """What the data plane hands to the engine is what it says: prompt, parameters and key."""
    rows, tokens = rows_of(plain), tokens_of(plain)
    alone = replace(plain.engine, max_num_seqs=1)
    factory = ModelFactory(plain.model, alone, "float32")
    engine, tokenizer = factory.build(), factory.tokenizer()
    for given in TABLE.to_pylist():
        row = rows[given["id"]]
        (prompt,) = tokenizer.encode([f"u:{given['prompt']}|a:"], special=False)
        own = {name: given[name] for name in plain.row_parameters}
        law = replace(plain.sampling, **own)
        engine.submit(Request(prompt, law, row["row_key"].hex()))
        while engine.has_work:
            for completion in engine.step():
                assert completion.text == row["completion"]
                assert completion.token_ids == tokens[row["row_key"].hex()]
    assert len({row["completion"] for row in rows.values()}) > ROWS / 2


def test_fault_24_drafting_changes_no_token_and_statistics_add_up(
    plain: RunConfig, tmp_path: Path
) -> None:
    engine = replace(plain.engine, draft=SELF_DRAFTING)
    config = replace(plain, output=str(tmp_path / "out"), engine=engine)
    report = run(config, engine_factory=recorded(config))
    assert tokens_of(config) == tokens_of(plain)
    assert texts_of(config) == texts_of(plain)
    sums = check_statistics(config)
    assert sums["num_draft_tokens"] > sums["num_accepted_draft_tokens"] > 0
    assert report.completion_tokens == sums["completion_tokens"]
    # And where there was not one draft, in some rows or in all of them.
    assert [r["num_draft_tokens"] for r in rows_of(config).values() if r["completion_tokens"] == 1]
    undrafted = check_statistics(plain)
    assert undrafted["num_draft_tokens"] == 0
    assert undrafted["completion_tokens"] == sums["completion_tokens"]


def test_fault_25_actors_blocks_deaths_and_resumes_change_no_token(
    plain: RunConfig, tmp_path: Path
) -> None:
    """Two actors with small blocks until they are killed with their driver; the rest otherwise."""
    engine = replace(plain.engine, max_num_seqs=2, draft=SELF_DRAFTING)
    config = replace(
        plain,
        output=str(tmp_path / "out"),
        engine=engine,
        rows_per_block=3,
        actors=2,
        audit=1.0,
    )
    output = Path(config.output)
    kill_when(tmp_path, config, recorded(config, pause=0.05), lambda: committed(output) >= 3)
    assert committed(output) < ROWS

    engine = replace(engine, max_num_seqs=5, draft=DraftConfig(drafter="ngram", draft_tokens=2))
    rest = replace(config, engine=engine, rows_per_block=7, actors=1)
    report = run(rest, engine_factory=recorded(rest))
    assert 3 <= report.rows_reused < ROWS
    assert tokens_of(config) == tokens_of(plain)
    assert texts_of(config) == texts_of(plain)
    assert all(row["audited"] and row["audit_identical"] for row in rows_of(config).values())
    check_statistics(config)
