"""Which rounds are captured, replayed or played: the cache alone, with a stand-in for captures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from admg.cuda_graphs import CudaRecorder, GraphLimits, RoundGraphs, bucket
from admg.device_round import PlanClass, RoundKey
from admg.plan import DraftPlan
from admg.plan_classes import MOST_CLASSES, PATIENCE, PlanClasses
from admg.row_laws import LawKind

GREEDY = LawKind()


class Tape:
    """Records calls instead of kernels; each capture takes some bytes, or fails."""

    def __init__(self, nbytes: int = 10, fails_at: int | None = None) -> None:
        self.nbytes = 0
        self._each, self._fails_at = nbytes, fails_at
        self.captured: list[Callable[[], None]] = []

    def record(self, play: Callable[[], None]) -> Callable[[], None]:
        if len(self.captured) == self._fails_at:
            raise torch.OutOfMemoryError("no room")
        self.captured.append(play)
        self.nbytes += self._each
        return play


class Player:
    """Graphs over a round that only notes its key."""

    def __init__(self, tape: Tape | None, limits: GraphLimits | None = None) -> None:
        self.played: list[RoundKey] = []
        self.graphs = RoundGraphs(self.played.append, tape, limits)


def key(sequences: int, tokens: int = 5, passes: int = 4, **fields: object) -> RoundKey:
    return RoundKey(sequences, passes, tokens, GREEDY, **fields)


def test_the_first_round_of_a_kind_is_played_once_and_later_ones_replayed() -> None:
    tape = Tape()
    player = Player(tape)
    for _ in range(3):
        player.graphs.play(key(4))
    player.graphs.play(key(8))
    assert player.played == [key(4), key(4), key(4), key(8)]
    report = player.graphs.report
    assert (report.eager, report.replayed, report.graphs, report.nbytes) == (2, 2, 2, 20)
    assert report.by_key == {key(4): 2, key(8): 0} and report.stopped is None


def test_rounds_of_another_kind_are_other_graphs() -> None:
    tape = Tape()
    player = Player(tape)
    kinds = [
        key(4),
        key(4, tokens=6),
        key(4, passes=3),
        key(4, learns=True),
        key(4, plans=PlanClass(masked=True)),
        key(4, plans=PlanClass(dropped=(1,))),
        RoundKey(4, 4, 5, LawKind("whole")),
        RoundKey(4, 4, 5, LawKind("greedy", bans=True)),
    ]
    for kind in kinds * 2:
        player.graphs.play(kind)
    assert len(tape.captured) == len(kinds)
    assert player.graphs.report.replayed == len(kinds)


@pytest.mark.parametrize(
    ("limits", "tape", "kept"),
    [
        (GraphLimits(graphs=2), Tape(), 2),
        (GraphLimits(nbytes=25), Tape(), 3),
        (GraphLimits(seconds=0.0), Tape(), 1),
        (GraphLimits(), Tape(fails_at=2), 2),
    ],
)
def test_beyond_a_bound_rounds_are_played(
    limits: GraphLimits, tape: Tape, kept: int, caplog: pytest.LogCaptureFixture
) -> None:
    player = Player(tape, limits)
    for _ in range(2):
        for sequences in range(1, 7):
            player.graphs.play(key(sequences))
    report = player.graphs.report
    assert len(player.played) == 12
    assert (report.graphs, report.replayed, report.eager) == (kept, kept, 12 - kept)
    assert report.stopped is not None and len(caplog.records) == 1


def test_without_captures_all_rounds_are_played() -> None:
    player = Player(None)
    for _ in range(3):
        player.graphs.play(key(4))
    assert (player.graphs.report.eager, player.graphs.report.graphs) == (3, 0)


def test_rounds_are_prepared_largest_first() -> None:
    player = Player(Tape())
    report = player.graphs.prepare([key(1), key(16), key(4, tokens=1, passes=0), key(4), key(16)])
    assert player.played == [key(16), key(4), key(1), key(4, tokens=1, passes=0)]
    assert report.graphs == 4 and report.capture_seconds >= 0
    player.graphs.play(key(4))
    assert report.replayed == 1


def test_buckets() -> None:
    assert [bucket(n, 61) for n in (1, 2, 3, 5, 9, 16, 17, 33, 48, 49, 61)] == [
        *(1, 2, 4, 8, 16, 16, 32, 48, 48, 61, 61)
    ]
    assert [bucket(n, 3) for n in (1, 2, 3)] == [1, 2, 3]


def test_plan_classes_are_few_and_leave_out_nothing_that_a_plan_keeps() -> None:
    classes = PlanClasses()
    seen = set()
    for i in range(12):
        plans = [DraftPlan((1, 2, 3 + i), 4), DraftPlan((1, 2, 3 + i, 20), 4)]
        found = classes.of(plans, exits=False)
        assert set(found.dropped) <= {1, 2, 3 + i} and found.masked
        seen.add(found.dropped)
    assert len(seen) <= MOST_CLASSES + 1
    same = classes.of([DraftPlan((1, 2, 3), 4)] * 2, exits=True)
    assert same == PlanClass((1, 2, 3), exits=True)
    assert classes.of([], exits=False) == PlanClass()


def test_sets_that_are_searched_for_get_classes_of_their_own_one_after_another() -> None:
    """The best set drafts between two trials, and rounds without drafts come in between."""
    classes = PlanClasses()
    best = (1, 2)
    for trial in range(10):
        for dropped in (best, (3, 4 + trial)):
            for _ in range(PATIENCE):
                found = classes.of([DraftPlan(dropped, 4)] * 3, exits=False)
                assert classes.of([], exits=False) == PlanClass()
            assert found == PlanClass(dropped)
        assert classes.of([DraftPlan(best, 4)], exits=False) == PlanClass(best), "in use: it stays"


def test_captures_are_made_on_the_models_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which need not be the process's current one: a stand-in for torch.cuda keeps count."""
    current, log = ["cuda:0"], []

    @contextmanager
    def at(device: torch.device) -> Iterator[None]:
        before, current[0] = current[0], str(device)
        yield
        current[0] = before

    @contextmanager
    def graph(_: object, pool: object, stream: object, **how: Any) -> Iterator[None]:
        log.append(("capture", current[0], stream))
        yield

    class Graph:
        def replay(self) -> None:
            log.append(("replay", current[0]))

    stand_ins = {
        "Stream": lambda device: f"stream of {device}",
        "graph_pool_handle": lambda: None,
        "empty_cache": lambda: None,
        "memory_reserved": lambda _: 0,
        "CUDAGraph": Graph,
        "graph": graph,
        "device": at,
    }
    for name, value in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, value)
    replay = CudaRecorder(torch.device("cuda:1")).record(lambda: log.append("play"))
    replay()
    stream = "stream of cuda:1"
    assert log == [("capture", "cuda:1", stream), "play", ("replay", "cuda:1")]
