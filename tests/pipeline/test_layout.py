"""How a run is laid out: block sizes, blocks in flight, actors on what the cluster has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from admg.config import EngineConfig, SamplingParams
from pipeline.blocks import calls_in_flight, measured_speed, rows_per_block, rows_per_call
from pipeline.cluster import Cluster
from pipeline.config import RunConfig
from pipeline.dataflow import decode
from pipeline.job import check_job
from pipeline.layout import layout_of, patience
from pipeline.ledger import read_ledger
from pipeline.manifest import MANIFEST
from pipeline.progress import Tracker
from pipeline.storage import Store
from tests.pipeline.conftest import write_shards
from tests.pipeline.standin import CONTEXT, StandIn

BASE = RunConfig(input=("in",), output="out", model="model")
MILLION = 10**6
HERE = Cluster(16, 0, False)


@pytest.mark.parametrize(
    ("seqs", "rows", "blocks"), [(16, 32, 2), (16, 8, 5), (64, 32, 5), (1, 32, 2), (64, 1, 64)]
)
def test_calls_in_flight_hold_more_than_twice_the_batch(seqs: int, rows: int, blocks: int) -> None:
    config = replace(BASE, engine=EngineConfig(max_num_seqs=seqs))
    assert calls_in_flight(config, rows) == blocks
    assert calls_in_flight(config, rows, MILLION) == blocks


@pytest.mark.parametrize(("share", "calls"), [(100, 5), (36, 4), (27, 3), (7, 2), (0, 2)])
def test_no_actor_holds_more_than_its_share_of_a_small_job(share: int, calls: int) -> None:
    assert calls_in_flight(BASE, 8, share) == calls


def test_a_layout_with_several_actors_shares_rows_tokenizers_and_writers() -> None:
    config = replace(BASE, sampling=SamplingParams(max_tokens=64))
    one, nine = (layout_of(config, 100, HERE, actors) for actors in (1, 9))
    assert (one.actors, one.rows_per_block, one.held) == (1, 17, 45)
    assert (one.tokenizers, one.writers) == (1, 1)
    assert (nine.actors, nine.rows_per_block, nine.held) == (9, 6, 12)
    assert (nine.tokenizers, nine.writers) == (3, 3)


@pytest.mark.parametrize(
    ("tokens", "rows", "actors", "gpus", "measured", "expected"),
    [
        (128, MILLION, 1, 0.0, None, 42),  # 30 tokens a second for three minutes
        (2048, MILLION, 1, 0.0, None, 2),
        (100_000, MILLION, 1, 0.0, None, 1),
        (512, MILLION, 1, 1.0, None, 175),
        (16, MILLION, 1, 1.0, None, 256),
        (512, MILLION, 1, 1.0, 50.0, 17),  # slower than thought
        (64, 400, 1, 0.0, None, 50),  # a small job still has eight blocks an actor
        (128, 56, 1, 0.0, None, 14),  # of about a batch at least
        (128, 56, 4, 0.0, None, 7),  # and two of them
        (128, 3, 4, 0.0, None, 1),
    ],
)
def test_a_block_takes_minutes_and_every_actor_gets_several(
    tokens: int, rows: int, actors: int, gpus: float, measured: float | None, expected: int
) -> None:
    config = replace(BASE, sampling=SamplingParams(max_tokens=tokens))
    assert rows_per_block(config, rows, gpus, measured, None, actors) == expected
    nine = replace(config, rows_per_block=9)
    assert rows_per_block(nine, rows, gpus, measured, None, actors) == 9


def test_rows_that_may_have_more_tokens_of_their_own_make_smaller_blocks() -> None:
    config = replace(BASE, sampling=SamplingParams(max_tokens=64))
    assert rows_per_block(config, MILLION, 1.0, None) == 256
    assert rows_per_block(config, MILLION, 1.0, None, 4096) == 21
    layout = layout_of(config, MILLION, Cluster(16, 1, False), 1, tokens=4096)
    assert layout.rows_per_block == 21


class LaidOutError(Exception):
    """Ends a run where its layout is made."""


@pytest.mark.parametrize(("tokens", "most"), [([None, 9], 9), ([None, 3], 4), ([999, 9], CONTEXT)])
def test_a_run_is_laid_out_for_the_rows_that_are_left_of_its_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: list[int | None], most: int
) -> None:
    columns = {"id": range(40), "prompt": ["p"] * 40, "max_tokens": tokens * 20}
    write_shards(tmp_path / "in", [columns])
    config = replace(
        BASE,
        input=(str(tmp_path / "in"),),
        output=str(tmp_path / "out"),
        sampling=SamplingParams(max_tokens=4),
        row_parameters=("max_tokens",),
    )
    job = check_job(config, StandIn())
    (part,) = job.source.scan(config).chunks
    seen: list[tuple[int, int]] = []

    def laid_out(*given: Any) -> None:
        seen.append((given[1], given[-1]))
        raise LaidOutError

    monkeypatch.setattr("pipeline.dataflow.layout_of", laid_out)
    ledger = read_ledger(job.store, config.id_column)
    with pytest.raises(LaidOutError):
        decode(job, Cluster(4, 0, False), 1, [(part, 3)], ledger, Tracker(None), 37, lambda: None)
    assert seen == [(3, most)]


@given(rows=st.integers(1, 2000), seqs=st.integers(1, 300), audit=st.sampled_from((0.0, 0.1)))
def test_calls_are_equal_parts_of_a_block_that_a_batch_holds(
    rows: int, seqs: int, audit: float
) -> None:
    config = replace(BASE, engine=EngineConfig(max_num_seqs=seqs), audit=audit)
    call = rows_per_call(config, rows)
    assert 1 <= call <= (rows if audit else min(rows, seqs))
    parts = -(-rows // call)
    assert parts * call < rows + parts  # the last one lacks a row a part at most
    if audit:
        assert call == rows


def test_speed_is_that_of_the_last_finished_run(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert measured_speed(store) is None
    store.prepare()
    (tmp_path / MANIFEST).write_text(
        '{"run": {"tokens_per_second": 90.0, "config": {"actors": 3}}}'
    )
    assert measured_speed(store) == 30.0


def test_actors_leave_room_for_reading_and_writing() -> None:
    roomy = layout_of(BASE, MILLION, Cluster(4, 0, False), 2)
    assert (roomy.actors, roomy.cpus, roomy.gpus, roomy.needs["CPU"]) == (2, 1.0, 0.0, 4.0)
    tight = layout_of(BASE, MILLION, Cluster(3, 0, False), 2)
    assert (tight.actors, tight.cpus, tight.needs["CPU"]) == (2, 0.0, 2.0)


def test_a_cluster_that_lost_gpus_for_good_runs_fewer_actors() -> None:
    cluster = Cluster(16, 3, False)
    assert layout_of(BASE, MILLION, cluster, 4).actors == 4  # it may still grow
    assert layout_of(BASE, MILLION, cluster, 4).needs["GPU"] == 3
    assert layout_of(BASE, MILLION, cluster, 4, True).actors == 3
    with pytest.raises(ValueError, match="actors is 4 with 1 GPUs each: it must fit the 3 GPUs"):
        layout_of(BASE, MILLION, Cluster(16, 3, True), 4)


def test_patience_outlasts_the_longest_row() -> None:
    assert patience(BASE, 100.0) == 1800.0
    assert patience(BASE, 2000.0) == 4000.0
    assert patience(replace(BASE, stall_seconds=7.0), 2000.0) == 7.0
