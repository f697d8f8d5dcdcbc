"""Which layers a rule drops: worked by hand, and properties that hold for every similarity."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from admg.draft_rules import DropRule
from admg.plan import DraftPlan, choose_dropped

NONE = {"fill_gaps": False, "drop_tail": False, "keep_first": 0, "keep_last": 0, "margin": 0.0}


def test_what_a_plan_saves_of_the_keys_and_values() -> None:
    plan = DraftPlan((1,), 4, windowed=((0,), (), (0, 1)))
    # 3 layers of 2 heads: 2 dropped, 3 limited to 10 keys, 1 whole.
    assert plan.kv_saved(3, 2, 100, 10) == pytest.approx(1 - (100 + 3 * 10) / 600)
    assert plan.kv_saved(3, 2, 5, 10) == pytest.approx(1 - 4 * 5 / 30), "all is near yet"
    assert DraftPlan((), 4).kv_saved(3, 2, 100, 10) == 0


def test_a_threshold_takes_what_is_at_or_above_it() -> None:
    similarity = [0.99, 0.5, 0.75, 0.7, 0.8]
    assert choose_dropped(similarity, DropRule(threshold=0.75, **NONE)) == (0, 2, 4)
    assert choose_dropped(similarity, DropRule(threshold=0.995, **NONE)) == ()
    assert choose_dropped(similarity, DropRule(threshold=-1, **NONE)) == (0, 1, 2, 3, 4)


def test_guards_keep_the_first_and_the_last_layers() -> None:
    similarity = [0.99] * 6
    rule = DropRule(threshold=0.9, fill_gaps=False, drop_tail=False)
    assert choose_dropped(similarity, rule) == (1, 2, 3, 4)
    assert choose_dropped(similarity, replace(rule, keep_first=0)) == (0, 1, 2, 3, 4)
    assert choose_dropped(similarity, replace(rule, keep_last=0)) == (1, 2, 3, 4, 5)
    assert choose_dropped(similarity, replace(rule, keep_first=3, keep_last=2)) == (3,)
    assert choose_dropped(similarity, replace(rule, keep_first=4, keep_last=4)) == ()


def test_rule_1_fills_single_gaps_down_to_the_margin() -> None:
    #              kept   drop  gap   drop  two kept in a row   drop  too low drop  kept
    similarity = [0.50, 0.98, 0.96, 0.99, 0.965, 0.965, 0.98, 0.90, 0.98, 0.40]
    rule = DropRule(threshold=0.975, margin=0.03, drop_tail=False)
    assert choose_dropped(similarity, rule) == (1, 2, 3, 6, 8)
    assert choose_dropped(similarity, replace(rule, margin=0.01)) == (1, 3, 6, 8)
    assert choose_dropped(similarity, replace(rule, margin=0.2)) == (1, 2, 3, 6, 7, 8)
    assert choose_dropped(similarity, replace(rule, fill_gaps=False)) == (1, 3, 6, 8)


def test_rule_1_respects_the_guards() -> None:
    """A gap that a guard protects stays, and a guarded layer is not a dropped neighbour."""
    similarity = [0.99, 0.97, 0.99, 0.5]
    rule = DropRule(threshold=0.98, margin=0.05, drop_tail=False)
    assert choose_dropped(similarity, rule) == (2,)
    assert choose_dropped(similarity, replace(rule, keep_first=0)) == (0, 1, 2)
    assert choose_dropped(similarity, replace(rule, keep_first=2)) == (2,)


def test_rule_2_drops_the_run_before_the_last_layers() -> None:
    similarity = [0.50, 0.98, 0.80, 0.96, 0.955, 0.97, 0.30]
    rule = DropRule(threshold=0.975, margin=0.03, fill_gaps=False)
    assert choose_dropped(similarity, rule) == (1, 3, 4, 5)
    assert choose_dropped(similarity, replace(rule, margin=0.01)) == (1, 5)
    assert choose_dropped(similarity, replace(rule, drop_tail=False)) == (1,)
    # The run ends before the guards: it may start at layer 4 for keep_last=2, at 6 for none.
    assert choose_dropped(similarity, replace(rule, keep_last=2)) == (1, 3, 4)
    assert choose_dropped(similarity, replace(rule, keep_last=0)) == (1,)


def test_a_count_includes_what_rule_1_takes() -> None:
    similarity = [0.5, 0.99, 0.94, 0.98, 0.60, 0.955, 0.5, 0.5]
    rule = DropRule(count=3, margin=0.05, drop_tail=False)
    # At level 0.98: layers 1 and 3, and 2 between them, which goes before the more alike 5.
    assert choose_dropped(similarity, rule) == (1, 2, 3)
    assert choose_dropped(similarity, replace(rule, fill_gaps=False)) == (1, 3, 5)
    # Two: level 0.98 would take three, so 0.99 it is, filled up by the most alike of the rest.
    assert choose_dropped(similarity, replace(rule, count=2)) == (1, 3)
    assert choose_dropped(similarity, replace(rule, count=4)) == (1, 2, 3, 5)


def test_a_count_includes_what_rule_2_takes() -> None:
    similarity = [0.5, 0.99, 0.955, 0.6, 0.975, 0.95, 0.5]
    rule = DropRule(count=3, margin=0.03, fill_gaps=False)
    # At level 0.975: layers 1 and 4, and 5 in the run before the last, before the more alike 2.
    assert choose_dropped(similarity, rule) == (1, 4, 5)
    assert choose_dropped(similarity, replace(rule, drop_tail=False)) == (1, 2, 4)


@pytest.mark.parametrize(
    ("quantile", "expected"), [(0.0, ()), (0.2, (8, 9)), (0.5, (5, 6, 7, 8, 9)), (1.0, range(10))]
)
def test_a_quantile_is_a_share_of_all_layers(quantile: float, expected: range) -> None:
    similarity = [i / 10 for i in range(10)]
    assert choose_dropped(similarity, DropRule(quantile=quantile, **NONE)) == tuple(expected)


def test_a_count_beyond_the_layers_takes_all_that_may_go() -> None:
    assert choose_dropped([0.1, 0.9, 0.5, 0.2], DropRule(count=99)) == (1, 2)
    assert choose_dropped([0.1, 0.9], DropRule(count=99)) == ()
    assert choose_dropped([0.1, 0.9], DropRule(count=99, keep_first=0, keep_last=0)) == (0, 1)


def test_a_plan_is_a_value() -> None:
    assert DraftPlan((1, 2), 4) == DraftPlan((1, 2), 4)
    assert len({DraftPlan((1, 2), 4), DraftPlan((1, 2), 4), DraftPlan((1,), 4)}) == 2


# Rounded, so that equal values, the hard case of ranks, do occur.
similarities = st.lists(st.floats(-1, 1).map(lambda x: round(x, 2)), min_size=1, max_size=24)
levels = st.one_of(
    st.builds(dict, threshold=st.floats(-1, 1)),
    st.builds(dict, quantile=st.floats(0, 1)),
    st.builds(dict, count=st.integers(0, 30)),
)
rules = st.builds(
    lambda level, others: DropRule(**level, **others),
    levels,
    st.fixed_dictionaries(
        {
            "margin": st.floats(0, 0.5),
            "fill_gaps": st.booleans(),
            "drop_tail": st.booleans(),
            "keep_first": st.integers(0, 4),
            "keep_last": st.integers(0, 4),
        }
    ),
)


@settings(deadline=None, derandomize=True)
@given(similarities, rules)
def test_guards_and_order_always_hold(similarity: list[float], rule: DropRule) -> None:
    dropped = choose_dropped(similarity, rule)
    assert list(dropped) == sorted(set(dropped))
    assert all(rule.keep_first <= d < len(similarity) - rule.keep_last for d in dropped)


@settings(deadline=None, derandomize=True)
@given(similarities, rules, st.integers(0, 30))
def test_a_count_is_exact(similarity: list[float], rule: DropRule, count: int) -> None:
    rule = replace(rule, threshold=None, quantile=None, count=count)
    allowed = max(0, len(similarity) - rule.keep_first - rule.keep_last)
    assert len(choose_dropped(similarity, rule)) == min(count, allowed)


@settings(deadline=None, derandomize=True)
@given(similarities, rules, st.floats(-1, 1), st.floats(-1, 1))
def test_a_lower_threshold_drops_no_layer_less(
    similarity: list[float], rule: DropRule, one: float, other: float
) -> None:
    low, high = (
        set(choose_dropped(similarity, replace(rule, quantile=None, count=None, threshold=level)))
        for level in sorted((one, other))
    )
    assert high <= low


@settings(deadline=None, derandomize=True)
@given(similarities, rules, st.floats(-1, 1))
def test_the_two_rules_only_add_and_only_within_the_margin(
    similarity: list[float], rule: DropRule, threshold: float
) -> None:
    rule = replace(rule, quantile=None, count=None, threshold=threshold)
    bare = set(choose_dropped(similarity, replace(rule, fill_gaps=False, drop_tail=False)))
    added = set(choose_dropped(similarity, rule)) - bare
    assert bare <= set(choose_dropped(similarity, rule))
    for layer in added:
        assert threshold - rule.margin - 1e-9 <= similarity[layer] < threshold
    if not rule.drop_tail:
        assert all({layer - 1, layer + 1} <= bare for layer in added)
