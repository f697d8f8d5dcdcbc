"""Choices under noise: few switches where two choices are equal, quick ones where one is better."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest

from admg.controller import MARGIN, Controller
from admg.drafters.ngram import Proposal
from admg.pass_cost import PassCost
from admg.standing import EXPLORE_EVERY, EXPLORE_ROUNDS, Standing, keep_share
from tests.admg.test_controller import costs, sequence, with_acceptance

LEVELS = (MARGIN, 1.0)


def switches(choices: list[bool]) -> int:
    return sum(a != b for a, b in pairwise(choices))


def noisy(seed: int, spread: float) -> Callable[[], float]:
    generator = random.Random(seed)
    return lambda: generator.lognormvariate(0.0, spread)


@pytest.mark.parametrize("advantage", [0.98, 1.0, 1.015, 1.03, 1.05])
@pytest.mark.parametrize("seed", range(5))
def test_noise_around_equality_switches_seldom(advantage: float, seed: int) -> None:
    noise = noisy(seed, 0.03)
    promised = [advantage * noise() for _ in range(1000)]
    standing = Standing()
    chosen = [standing.choose(p, 1.0, *LEVELS) for p in promised]
    at_once = [p > MARGIN for p in promised]
    assert switches(chosen) <= 60 and switches(chosen) < max(switches(at_once), 40) / 3
    if advantage <= 1:
        assert sum(chosen) < 60, "what brings nothing is not chosen"


@pytest.mark.parametrize(("advantage", "most"), [(1.1, 6), (1.2, 3), (1.35, 1)])
def test_drafts_that_pay_are_taken_up_within_a_few_rounds(advantage: float, most: int) -> None:
    standing = Standing()
    assert not standing.choose(0.9, 1.0, *LEVELS)
    chosen = [standing.choose(advantage, 1.0, *LEVELS) for _ in range(most)]
    assert chosen[-1] and all(standing.choose(advantage, 1.0, *LEVELS) for _ in range(99))


def test_drafts_that_promise_less_than_plain_are_given_up_at_once() -> None:
    standing = Standing()
    assert standing.choose(1.5, 1.0, *LEVELS)
    assert standing.choose(1.01, 1.0, *LEVELS), "they go on while they bring anything"
    assert not standing.choose(1.0, 1.0, *LEVELS), "plain decoding wins ties"
    assert not standing.choose(1.01, 1.0, *LEVELS), "and must be beaten by the margin then"


def test_the_first_choice_is_the_better_one_and_ties_are_plain() -> None:
    assert Standing().choose(1.04, 1.0, *LEVELS)
    assert not Standing().choose(MARGIN, 1.0, *LEVELS)


def test_exploration_is_bounded_and_only_of_what_may_pay() -> None:
    rounds = 10 * (EXPLORE_EVERY + EXPLORE_ROUNDS)
    for promised, share in ((0.9, EXPLORE_ROUNDS / (EXPLORE_EVERY + EXPLORE_ROUNDS)), (0.6, 0.0)):
        standing = Standing()
        tried = sum(standing.choose(promised, 1.0, *LEVELS) for _ in range(rounds))
        assert tried == pytest.approx(share * rounds, abs=EXPLORE_ROUNDS)


def test_a_share_of_limits_stays_where_another_is_about_as_good() -> None:
    assert keep_share(None, {0.0: 1.0, 0.5: 1.01}) == 0.5
    assert keep_share(0.0, {0.0: 1.0, 0.5: 1.02}) == 0.0
    assert keep_share(0.0, {0.0: 1.0, 0.5: 1.05}) == 0.5
    assert keep_share(0.9, {0.0: 1.0, 0.5: 1.0}) == 0.0, "what is no choice any more does not stay"


def turn(
    controller: Controller, target: PassCost, own: PassCost, seconds: Callable[[float], float]
) -> str:
    """One round whose passes take as long as `seconds` makes of what they cost; who drafted."""
    s = with_acceptance(sequence(), 0.8)
    choice = controller.choose([s], [None], 50)
    drafted = max(choice.own)
    target.observe(1, 50, seconds(1 + 0.01 * drafted), 1 + drafted)
    if drafted:
        own.observe(1, 50, seconds(OWN))
    assert controller.last is not None
    return controller.last.name


OWN = 0.6


def test_noisy_clocks_do_not_make_the_controller_flap() -> None:
    """Self-drafts of about the cost at which they bring their margin and no more."""
    target, draft = costs(0.01, OWN)
    controller, noise = Controller(target, draft), noisy(3, 0.1)
    chosen = [turn(controller, target, draft[0.0], lambda x: x * noise()) for _ in range(600)]
    assert switches([name == "self" for name in chosen]) <= 24


@pytest.mark.parametrize(
    ("before", "after", "wanted", "within"),
    [(0.3, 1.2, "plain", 8), (1.2, 0.3, "self", EXPLORE_EVERY + 2 * EXPLORE_ROUNDS)],
)
def test_the_controller_follows_a_real_change(
    before: float, after: float, wanted: str, within: int
) -> None:
    """Dearer self-drafts are given up soon; cheaper ones are found out when they are tried."""
    target, draft = costs(0.01, before)
    controller = Controller(target, draft)
    first = {turn(controller, target, draft[0.0], lambda x: x) for _ in range(20)}
    assert len(first) == 1 and wanted not in first
    seconds = {OWN: after}
    names = [
        turn(controller, target, draft[0.0], lambda x: seconds.get(x, x))
        for _ in range(within + 50)
    ]
    assert set(names[within:]) == {wanted}


def test_lookup_is_judged_afresh_in_every_round() -> None:
    target, draft = costs(0.01, 5.0)
    controller = Controller(target, draft)
    found = Proposal(0, 5)
    for proposal in (found, None, found, None):
        choice = controller.choose([with_acceptance(sequence(), 0.8)], [proposal], 50)
        assert any(choice.lookup) == (proposal is not None)
