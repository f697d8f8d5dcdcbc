"""Ratios are made of sums; progress counts what there is."""

from __future__ import annotations

import time

import pyarrow as pa
import pytest

from admg.request import Completion
from admg.stats import SequenceStats
from pipeline.counters import Board, Counters, Reading
from pipeline.errors import RowError
from pipeline.progress import Progress, Tracker
from pipeline.schema import RowResult, result_columns
from pipeline.summary import Summary

LONG = SequenceStats(
    prompt_tokens=10,
    completion_tokens=91,
    num_spec_steps=30,
    num_draft_tokens=120,
    num_accepted_draft_tokens=60,
    mean_acceptance_length=3.0,
    speedup=2.0,
    speedup_end_to_end=1.5,
    prefill_seconds=1.0,
    decode_seconds=3.0,
)
SHORT = SequenceStats(
    prompt_tokens=20,
    completion_tokens=11,
    num_spec_steps=10,
    mean_acceptance_length=1.0,
    speedup=1.0,
    speedup_end_to_end=1.0,
    prefill_seconds=1.0,
    decode_seconds=1.0,
)
UNTIMED = SequenceStats(prompt_tokens=5, completion_tokens=1, decode_seconds=100.0)


def summary(*rows: RowResult) -> Summary:
    return Summary.of(pa.table(result_columns(rows)))


def test_ratios_weigh_rows_by_their_tokens_and_seconds() -> None:
    whole = summary(*(RowResult(stats=s) for s in (LONG, SHORT, UNTIMED)))
    assert whole.mean_acceptance_length == pytest.approx((3 * 30 + 1 * 10) / 40)
    assert whole.draft_acceptance_rate == pytest.approx(0.5)
    assert whole.speedup == pytest.approx((2 * 3 + 1 * 1) / 4)
    assert whole.speedup_end_to_end == pytest.approx((1.5 * 4 + 1 * 2) / 6)
    assert (whole.prompt_tokens, whole.completion_tokens) == (35, 103)


def test_parts_add_up_to_the_whole() -> None:
    error = RowResult(error=RowError("prompt_null", "null"))
    rows = [RowResult(stats=LONG), error, RowResult(stats=SHORT), error, RowResult(stats=UNTIMED)]
    parts = Summary.total(summary(row) for row in rows)
    assert parts == summary(*rows)
    assert (parts.rows, parts.rows_error, parts.errors_by_code) == (5, 2, {"prompt_null": 2})


def test_nothing_gives_no_ratio_rather_than_a_wrong_one() -> None:
    for empty in (Summary.total([]), summary(RowResult(error=RowError("x", "y")))):
        assert set(empty.statistics().values()) == {None}
    plain = SequenceStats(completion_tokens=3, num_spec_steps=2, mean_acceptance_length=1.0)
    assert summary(RowResult(stats=plain)).draft_acceptance_rate is None


def test_the_board_adds_up_actors_and_forgets_nothing() -> None:
    board = Board()
    assert board.read().actors == 0
    done = Counters().plus(Completion(1, "k", [], "stop", LONG))
    done = done.plus_errors(["prompt_null", "prompt_empty"])
    board.report("first", Counters())
    board.report("first", done)
    board.report("restarted", done)
    reading = board.read()
    assert reading.actors == 2
    assert reading.counters == done + done
    assert (reading.counters.rows, reading.counters.rows_error) == (6, 4)


def test_progress_counts_what_was_committed_before() -> None:
    shown: list[Progress] = []
    tracker = Tracker(shown.append)
    tracker.phase("starting", rows_total=10, rows_done=4)
    board = Board()
    tracker.update(board.read(), reused=4)
    board.report("actor", Counters().plus(Completion(1, "k", [], "stop", LONG)))
    tracker.update(board.read(), reused=4)
    assert [p.phase for p in shown] == ["starting", "decoding"]
    last = shown[-1]
    assert (last.rows_total, last.rows_done, last.rows_error, last.actors) == (10, 5, 0, 1)
    assert (last.mean_acceptance_length, last.speedup) == (3.0, 2.0)
    assert last.tokens_per_second > 0


def test_time_left_goes_by_this_run_alone() -> None:
    shown: list[Progress] = []
    tracker = Tracker(shown.append)
    tracker.phase("starting", rows_total=100, rows_done=50)
    tracker.update(Reading(1, Counters(rows=7), 7.0), reused=50)
    tracker.update(Reading(1, Counters(rows=10), 10.0), reused=50)
    tracker.phase("finishing")
    # 10 rows in 10 s, so 40 s for 40 rows; with the 50 rows of earlier it would be 6.7 s.
    assert [p.eta_seconds for p in shown] == [None, None, 40.0, None]


def test_what_a_lost_cluster_did_still_counts() -> None:
    """Then the rest is started again, with a board and actors that begin at 0."""
    shown: list[Progress] = []
    tracker = Tracker(shown.append)
    tracker.phase("starting", rows_total=100, rows_done=20)
    tracker.update(Reading(4, Counters(rows=30, completion_tokens=300), 10.0, 4), reused=20)
    tracker.keep()
    tracker.update(Reading(0, Counters(), 0.0), reused=20)
    tracker.update(Reading(2, Counters(rows=10, completion_tokens=60), 8.0, 2), reused=20)
    last = shown[-1]
    assert (last.rows_done, last.actors, last.tokens_per_second) == (60, 2, 20.0)
    assert last.eta_seconds == 18.0 and tracker.decoding_seconds == 18.0


def test_an_actor_that_says_nothing_for_long_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    board = Board()
    board.report("first/1", Counters(rows=1))
    now[0] += 14
    board.report("second/1", Counters(rows=2))
    board.report("second/2", Counters(rows=3))
    assert (board.read().actors, board.read().alive) == (2, 2)
    now[0] += 2
    reading = board.read()
    assert (reading.actors, reading.alive, reading.counters.rows) == (2, 1, 6)
