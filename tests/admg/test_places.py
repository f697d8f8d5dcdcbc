"""Running means at their places on the device: who gets one, keeps it, and what is there."""

from __future__ import annotations

from dataclasses import replace

import torch

from admg.config import SamplingParams
from admg.hole_filling import RunningMean
from admg.kv_arena import Extent
from admg.learned import Learned
from admg.places import Places
from admg.plan import DraftPlan
from admg.request import Request
from admg.round_buffers import Means
from admg.sequence import Sequence

LAYERS, HIDDEN, DECAY = 3, 5, 0.9


def sequence(value: float | None) -> Sequence:
    """One whose running mean has sums of this value; None: it learns nothing."""
    s = Sequence(0, Request([1], SamplingParams()), 0, (), [1], Extent(0, 64))
    if value is not None:
        mean = RunningMean(torch.full((LAYERS, HIDDEN), value), 2.0)
        s.learned = Learned(filling=mean)
    return s


def means(places: int = 2) -> Means:
    return Means.new(places, LAYERS, HIDDEN, torch.device("cpu"), limits=False)


def test_a_mean_moves_to_its_place_once_and_is_read_there() -> None:
    sums = means()
    places = Places(sums, 2, DECAY)
    one, other, none = sequence(1.0), sequence(2.0), sequence(None)
    first = places.give([one, none, other])
    assert sorted([first[0], first[2]]) == [0, 1] and first[1] == places.nobody == 2
    sums.filling[first[0]] += 10  # what a round on the device does
    assert places.give([one, none, other]) == first
    assert (one.learned.filling.sums == 11).all() and (other.learned.filling.sums == 2).all()


def test_a_mean_that_was_made_elsewhere_comes_in_again() -> None:
    sums = means()
    places = Places(sums, 2, DECAY)
    s = sequence(1.0)
    (place,) = places.give([s])
    s.learned = replace(s.learned, filling=RunningMean(torch.full((LAYERS, HIDDEN), 7.0), 3.0))
    assert places.give([s]) == [place]
    assert (sums.filling[place] == 7).all() and s.learned.filling.weight == 3.0


def test_who_gives_a_place_up_keeps_what_it_has_learned() -> None:
    sums = means(1)
    places = Places(sums, 1, DECAY)
    one, other = sequence(1.0), sequence(2.0)
    places.give([one])
    places.give([other])
    assert (one.learned.filling.sums == 1).all() and (other.learned.filling.sums == 2).all()
    places.give([one])
    assert (one.learned.filling.sums == 1).all() and (other.learned.filling.sums == 2).all()


def test_weights_age_as_the_hosts_do() -> None:
    places = Places(means(), 2, DECAY)
    s = sequence(1.0)
    places.give([s])
    expected = RunningMean(torch.zeros(LAYERS, HIDDEN), 2.0)
    for verified in (3, 0, 1):
        places.taught(s, verified, limits=False)
        if verified:
            expected = expected.over(torch.zeros(LAYERS, verified, HIDDEN), DECAY)
        assert abs(s.learned.filling.weight - expected.weight) < 1e-12


def test_what_limits_leave_out_ages_where_the_round_has_added_to_it() -> None:
    """Not in plain rounds and lookup's, nor where the sequence's plan has no limits."""
    sums = Means.new(2, LAYERS, HIDDEN, torch.device("cpu"), limits=True)
    places = Places(sums, 2, DECAY)
    s = sequence(1.0)
    s.learned = replace(s.learned, left_out=s.learned.filling)
    s.plan = DraftPlan((), 4, windowed=((0,), (), ()))
    places.give([s])
    for limits, windowed, weight in (
        (False, s.plan.windowed, 2.0),
        (True, (), 2.0),
        (True, s.plan.windowed, DECAY * 2.0 + 1),
    ):
        s.plan = replace(s.plan, windowed=windowed)
        before = s.learned.filling.weight
        places.taught(s, 1, limits=limits)
        assert abs(s.learned.left_out.weight - weight) < 1e-12
        assert abs(s.learned.filling.weight - (DECAY * before + 1)) < 1e-12
