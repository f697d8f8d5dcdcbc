"""The record of attempts, the rules that follow from it, and the watchdog's question."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from admg.config import SamplingParams
from admg.request import Request
from pipeline.attempts import FOLDER, NO_WORD, AttemptRecord, Deaths, Failure, History
from pipeline.history import clear, fold, note_stop
from pipeline.quarantine import Rules, code_of, describe
from pipeline.storage import Store
from pipeline.survival import ActorGuard
from pipeline.watchdog import Watched, overdue
from tests.pipeline.s3 import BUCKET

RULES = Rules(max_crashes=2, max_num_seqs=16, row_seconds=10.0, token_seconds=0.5)


@pytest.fixture(params=["disk", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An output on a disk, and one on an S3 server."""
    uri = str(tmp_path / "out")
    if request.param == "s3":
        request.getfixturevalue("s3")
        uri = f"s3://{BUCKET}/{tmp_path.name}"
    store = Store(uri)
    store.prepare()
    store.make_folder(FOLDER)
    return store


def nothing_is_done(key: str) -> bool:
    return False


def test_what_was_in_flight_when_a_process_ended_counts(store: Store) -> None:
    first = AttemptRecord(store, "actor")
    first.begin(["a", "b"])
    first.begin(["c"])
    first.end(["b"])
    second = AttemptRecord(store, "actor")
    assert second.deaths("a") == Deaths(crashes=1, code="crashed", message=NO_WORD)
    assert second.deaths("b") == Deaths()
    assert second.deaths("c").total == 1
    third = AttemptRecord(store, "actor")  # the second one held nothing
    assert third.deaths("a").total == 1


def test_who_is_alone_is_the_only_suspect(store: Store) -> None:
    record = AttemptRecord(store, "actor")
    record.begin(["a", "b", "c"])
    record.alone(["b"])
    record = AttemptRecord(store, "actor")
    assert (record.deaths("a").total, record.deaths("b").alone) == (0, 1)
    record.begin(["a", "c"])
    record.alone(["b"])
    record.alone(None)
    record = AttemptRecord(store, "actor")
    assert [record.deaths(k).total for k in "abc"] == [1, 1, 1]


def test_the_last_word_names_cause_and_rows(store: Store) -> None:
    record = AttemptRecord(store, "actor")
    record.begin(["a", "b"])
    record.died(Failure("out_of_memory", "no room", ("b",), alone=True))
    record = AttemptRecord(store, "actor")
    assert record.deaths("a").total == 0
    assert record.deaths("b") == Deaths(ooms=1, alone=1, code="out_of_memory", message="no room")
    assert record.full_ooms == 1


def test_times_without_memory_that_a_guilty_row_explains_do_not_count(store: Store) -> None:
    record = AttemptRecord(store, "actor")
    for rows in (("a", "huge"), ("b", "huge"), ("a", "b")):
        record.died(Failure("out_of_memory", "no room", rows))
        record = AttemptRecord(store, "actor")
    assert record.full_ooms == 3
    record.find_guilty("huge")
    assert record.full_ooms == 1
    assert AttemptRecord(store, "actor").full_ooms == 1


def test_a_record_of_another_version_is_read(store: Store) -> None:
    AttemptRecord(store, "run1-x").begin(["a"])
    name = f"{FOLDER}/run1-x.json"
    failure = {"code": "out_of_memory", "message": "no room", "rows": ["a"]}
    old = json.loads(store.read(name)) | {"full_ooms": 1, "failure": failure}
    del old["full"]
    store.write(name, json.dumps(old).encode())
    assert fold(store, nothing_is_done).rows["a"].ooms == 1


def test_one_of_many_that_is_late_is_a_suspect_and_no_more(store: Store) -> None:
    record = AttemptRecord(store, "actor")
    record.begin(["a", "b"])
    record.died(Failure("deadline", "late", ("a",)))
    record = AttemptRecord(store, "actor")
    assert (record.deaths("a").deadlines, record.deaths("a").late_alone) == (1, 0)
    assert RULES.verdict(record.deaths("a")) is None and RULES.company(record.deaths("a")) == 8
    record.died(Failure("deadline", "late", ("a",), alone=True))
    record = AttemptRecord(store, "actor")
    assert (record.deaths("a").alone, record.deaths("a").late_alone) == (0, 1)
    assert RULES.verdict(record.deaths("a")) is not None


def test_a_row_that_is_there_twice_dies_once(store: Store) -> None:
    """As when Ray runs a call again in the same process."""
    record = AttemptRecord(store, "actor")
    record.begin(["a"])
    record.begin(["a"])
    record = AttemptRecord(store, "actor")
    assert (record.deaths("a").total, record.deaths("a").alone) == (1, 1)
    record.begin(["a", "b"])
    record.died(Failure("crashed", "broke", ("a", "b", "a")))
    assert AttemptRecord(store, "actor").deaths("a").total == 2


def test_loads_count_until_one_works(store: Store) -> None:
    assert [AttemptRecord(store, "actor").loads for _ in range(3)] == [1, 2, 3]
    record = AttemptRecord(store, "actor")
    record.loaded()
    assert AttemptRecord(store, "actor").loads == 1


def test_the_next_run_knows_what_all_actors_saw(store: Store) -> None:
    AttemptRecord(store, "run1-x").begin(["a", "b"])
    AttemptRecord(store, "run1-y").begin(["c"])
    earlier = fold(store, lambda key: key == "b")
    assert {key: deaths.total for key, deaths in earlier.rows.items()} == {"a": 1, "c": 1}
    assert store.names("", FOLDER) == ["before.json"]
    AttemptRecord(store, "run2-x", earlier).begin(["a"])
    again = fold(store, nothing_is_done)
    assert {key: deaths.total for key, deaths in again.rows.items()} == {"a": 2, "c": 1}
    clear(store)
    assert store.names("", FOLDER) == [] and fold(store, nothing_is_done) == History()


def test_a_cluster_that_is_killed_again_and_again_makes_no_row_guilty(store: Store) -> None:
    """Runs come to the same rows in the same order, so the same one is there each time."""
    for i in range(9):
        earlier = fold(store, nothing_is_done)
        record = AttemptRecord(store, f"run{i}-x", earlier)
        deaths = record.deaths("a")
        assert RULES.verdict(deaths, record.other_deaths("a")) is None
        assert (deaths.lost, deaths.total, deaths.alone) == (i, i, 0)
        record.begin(["a"])
        record.alone(["a"])


def test_a_row_that_kills_its_actor_is_guilty_also_where_drivers_are_killed(store: Store) -> None:
    for i in range(2):
        earlier = fold(store, nothing_is_done)
        AttemptRecord(store, f"run{i}-x", earlier).begin(["a"])
        record = AttemptRecord(store, f"run{i}-x", earlier)  # the actor is restarted
        record.begin(["a"])  # and its driver killed
    deaths = fold(store, nothing_is_done).rows["a"]
    assert (deaths.crashes, deaths.lost, deaths.alone) == (2, 2, 2)
    assert RULES.verdict(deaths) is not None


def test_a_crash_while_folding_counts_nothing_twice(store: Store) -> None:
    AttemptRecord(store, "run1-x").begin(["a"])
    left = store.read(f"{FOLDER}/run1-x.json")
    fold(store, nothing_is_done)
    store.write(f"{FOLDER}/run1-x.json", left)  # as if it had not been deleted yet
    assert fold(store, nothing_is_done).rows["a"].total == 1


def test_a_run_that_was_told_to_stop_blames_nobody(store: Store) -> None:
    AttemptRecord(store, "run1-x").begin(["a"])
    AttemptRecord(store, "run1-y").died(Failure("crashed", "broke", ("b",)))
    note_stop(store, "run1")
    assert set(fold(store, nothing_is_done).rows) == {"b"}


@pytest.mark.parametrize(
    ("deaths", "company", "guilty"),
    [
        (Deaths(), None, False),
        (Deaths(crashes=1), None, False),
        (Deaths(crashes=2), 8, False),
        (Deaths(crashes=3), 1, False),
        (Deaths(crashes=4, alone=1), 1, False),
        (Deaths(crashes=5, alone=2), 1, True),
        (Deaths(ooms=1), 8, False),
        (Deaths(ooms=3), 2, False),
        (Deaths(ooms=9), 1, False),
        (Deaths(crashes=2, ooms=2), 4, False),
        (Deaths(deadlines=1, code="deadline"), 8, False),
        (Deaths(deadlines=2, code="deadline"), 1, False),
        (Deaths(deadlines=3, late_alone=1, code="deadline"), 1, True),
        # A kill while it was alone, then a deadline that was another's.
        (Deaths(crashes=1, deadlines=1, alone=1, code="deadline"), 1, False),
        (Deaths(lost=1), None, False),
        (Deaths(lost=9), 8, False),
        (Deaths(lost=2, crashes=3), 1, False),
    ],
)
def test_suspicion_grows_with_deaths(deaths: Deaths, company: int | None, guilty: bool) -> None:
    assert RULES.company(deaths) == company
    assert (RULES.verdict(deaths) is not None) == guilty


def test_in_a_world_of_accidents_more_is_asked_for() -> None:
    needed = {0: 2, 1: 3, 2: 3, 3: 4, 7: 5, 15: 6}
    for others, alone in needed.items():
        deaths = Deaths(crashes=9, alone=alone, code="crashed")
        assert RULES.verdict(deaths, others) is not None
        assert RULES.verdict(replace(deaths, alone=alone - 1), others) is None
    late = Deaths(deadlines=3, late_alone=1, code="deadline")
    assert RULES.verdict(late, 99) is not None


def test_deaths_without_a_row_do_not_speak_against_it(store: Store) -> None:
    for key in ("a", "a", "b", "c"):
        record = AttemptRecord(store, "run-x")
        record.begin([key])
        record.alone([key])
    record = AttemptRecord(store, "run-x")
    assert [record.other_deaths(k) for k in "abcd"] == [2, 3, 3, 4]
    record.find_guilty("a")
    record.end(["a"])
    assert [record.other_deaths(k) for k in "bcd"] == [1, 1, 2]
    assert fold(store, nothing_is_done).deaths == 4
    later = AttemptRecord(store, "next-x", fold(store, nothing_is_done))
    assert [later.other_deaths(k) for k in "bcd"] == [1, 1, 2]


def test_a_batch_is_smaller_after_its_second_time_without_memory() -> None:
    assert [RULES.batch(n) for n in range(6)] == [16, 16, 8, 8, 4, 4]
    assert RULES.batch(99) == 1


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (MemoryError("x"), "out_of_memory", "the engine died: MemoryError: x"),
        (
            RuntimeError("CUDA out of memory. Tried to allocate"),
            "out_of_memory",
            "the engine died: RuntimeError: CUDA out of memory. Tried to allocate",
        ),
        (
            RuntimeError("CUDA error: device-side assert triggered\nCompile with"),
            "crashed",
            "the GPU's state is lost: RuntimeError: CUDA error: device-side assert triggered",
        ),
        (ValueError(""), "crashed", "the engine died: ValueError: no message"),
        (
            RuntimeError("CUDA driver error: misaligned address"),
            "crashed",
            "the GPU's state is lost: RuntimeError: CUDA driver error: misaligned address",
        ),
        (
            RuntimeError("uncorrectable ECC error encountered"),
            "crashed",
            "the GPU's state is lost: RuntimeError: uncorrectable ECC error encountered",
        ),
        (
            RuntimeError("all CUDA-capable devices are busy or unavailable"),
            "crashed",
            "the GPU's state is lost: RuntimeError: all CUDA-capable devices are busy or "
            "unavailable",
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
            "out_of_memory",
            "the engine died: RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling "
            "`cublasCreate`",
        ),
        (
            RuntimeError("std::bad_alloc"),
            "out_of_memory",
            "the engine died: RuntimeError: std::bad_alloc",
        ),
    ],
)
def test_what_an_exception_means(error: Exception, code: str, words: str) -> None:
    assert (code_of(error), describe(error)) == (code, words)


def test_what_torch_says_without_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert code_of(caught.value) == "out_of_memory"
    assert code_of(torch.OutOfMemoryError("CUDA: no room")) == "out_of_memory"


def test_rows_wait_for_whoever_is_there_already() -> None:
    """A short row behind a long one, and as many as there are places behind as many."""
    rules = Rules(max_crashes=2, max_num_seqs=2, row_seconds=10.0, token_seconds=1.0)
    guard = ActorGuard(None, rules)  # type: ignore[arg-type]
    long, short = (Request([1] * 10, SamplingParams(max_tokens=n), str(n)) for n in (100, 9))
    (first,) = guard.watched([long], [])
    assert (first.seconds, first.waits) == (111.0, 0.0)
    (behind,) = guard.watched([short], [first])
    assert (behind.seconds, behind.waits) == (20.0, 111.0)
    assert overdue([behind], behind.since + 130.0, behind.since + 130.0) == ()
    together = guard.watched([short, short], [first, first])
    assert [w.waits for w in together] == [222.0, 222.0]


def test_overdue_rows() -> None:
    a, b = Watched("a", since=0.0, seconds=10.0), Watched("b", since=5.0, seconds=20.0, waits=20.0)
    assert overdue([], 0.0, 1e9) == ()
    assert overdue([a, b], moved=9.0, now=9.5) == ()
    assert overdue([a, b], moved=30.0, now=30.0) == ("a",)  # the others go on
    assert overdue([a, b], moved=0.0, now=21.0) == ("a", "b")  # nothing moves
    assert overdue([b], moved=45.0, now=44.0) == ()
    assert overdue([b], moved=46.0, now=46.0) == ("b",)
