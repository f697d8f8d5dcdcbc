"""The controller, on made-up costs and acceptance: nothing here measures time."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from admg.acceptance import Acceptance, Chance, judged
from admg.config import DraftConfig, SamplingParams
from admg.controller import Controller
from admg.draft_rules import WINDOW_SHARES, WindowRule
from admg.drafters.ngram import Proposal
from admg.engine import Engine
from admg.kv_arena import Extent
from admg.model import Transformer
from admg.pass_cost import PassCost
from admg.plan import DraftPlan
from admg.request import Request
from admg.sequence import Sequence
from admg.warm_up import WarmUp
from tests.admg.decoding import (
    assert_identical,
    decode,
    drafting,
    engine_config,
    load,
    random_prompts,
    requests_for,
)


def costs(per_token: float, own: float = 1.0) -> tuple[PassCost, dict[float, PassCost]]:
    """A plain step costs 1 whatever the batch, each further token of a sequence `per_token`."""
    target = PassCost([1, 4], [10, 100], (1, 2, 5, 9))
    target.warm_up(lambda size, context, tokens: 1 + size * per_token * (tokens - 1))
    draft = PassCost([1, 4], [10, 100], (1,))
    draft.warm_up(lambda size, context, tokens: own)
    return target, {0.0: draft}


def sequence(remaining: int = 50, draft_tokens: int = 4) -> Sequence:
    request = Request([1, 2, 3], SamplingParams(max_tokens=remaining))
    s = Sequence(0, request, 0, (), [1, 2, 3], Extent(0, 64))
    s.plan = DraftPlan((), draft_tokens)
    return s


def with_acceptance(s: Sequence, rate: float) -> Sequence:
    for estimate in (s.lookup_acceptance, s.own_acceptance):
        for share in (estimate.first, estimate.later):
            share.accepted, share.judged = 1000 * rate, 1000
    return s


FOUND = Proposal(0, 5)


def test_free_tokens_are_drafted_as_long_as_they_may_be() -> None:
    target, _ = costs(per_token=0.0)
    (length,) = Controller(target, {}).choose([sequence()], [FOUND], 50).lookup
    assert length == 12
    (length,) = Controller(target, {}).choose([sequence(remaining=6)], [FOUND], 50).lookup
    assert length == 5, "the last token that may come is the target's own"


@pytest.mark.parametrize(("rate", "drafts"), [(0.05, False), (0.45, False), (0.6, True)])
def test_a_draft_must_bring_more_than_it_costs(rate: float, drafts: bool) -> None:
    """One more token costs half a step: worth it from an acceptance of about a half on."""
    target, _ = costs(per_token=0.5)
    chosen = Controller(target, {}).choose([with_acceptance(sequence(), rate)], [FOUND], 50)
    assert any(chosen.lookup) == drafts and not any(chosen.own)


def test_who_is_likelier_to_be_right_drafts_longer() -> None:
    target, _ = costs(per_token=0.03)
    rates = (0.2, 0.6, 0.95)
    batch = [with_acceptance(sequence(), rate) for rate in rates] + [sequence()]
    lengths = Controller(target, {}).choose(batch, [FOUND] * 3 + [None], 50).lookup
    assert lengths[0] < lengths[1] < lengths[2] and lengths[3] == 0


def test_nothing_to_look_up_is_plain_decoding() -> None:
    controller = Controller(costs(0.0)[0], {})
    assert controller.choose([sequence()], [None], 50).lookup == [0]
    assert controller.rounds == {"plain": 1}


@pytest.mark.parametrize(("own", "drafts"), [(0.2, True), (0.9, False)])
def test_self_drafts_pay_where_their_pass_is_cheap(own: float, drafts: bool) -> None:
    target, draft = costs(0.01, own)
    controller = Controller(target, draft)
    chosen = controller.choose([with_acceptance(sequence(), 0.8)], [None], 50)
    assert any(chosen.own) == drafts and chosen.lookup == [0]
    assert controller.own_may_pay(4) == drafts
    assert not any(controller.choose([sequence(draft_tokens=0)], [FOUND], 50).own)


@pytest.mark.parametrize(("longest", "pay"), [(100, False), (1000, True)])
def test_self_drafts_that_pay_in_long_contexts_alone_are_prepared_for(
    longest: int, pay: bool
) -> None:
    """Those are not timed beforehand: what a pass costs there is drawn on from shorter ones."""
    target = PassCost([1, 4], [10, 100], (1, 2, 5, 9), longest)
    target.warm_up(lambda size, context, tokens: 1 + context / 100)
    own = PassCost([1, 4], [10, 100], (1,))
    own.warm_up(lambda size, context, tokens: 1.1 + 0.006 * context)
    assert Controller(target, {0.0: own}).own_may_pay(4) == pay


def test_a_sequence_that_decodes_plainly_is_left_alone() -> None:
    controller = Controller(costs(0.0)[0], {})
    assert controller.choose([sequence(draft_tokens=0)], [FOUND], 50).lookup == [0]


def test_what_would_have_been_right_is_learned_without_drafting() -> None:
    controller = Controller(costs(0.0)[0], {})
    s = sequence()
    s.tokens += [1, 2]  # lookup at 0 would have said 1, 2, 3
    controller.learn(s, Proposal(0, 2), [1, 2], (0, 0))
    estimate = controller.lookup[False, 2]
    assert (estimate.first.accepted, estimate.first.judged) == (1, 1)
    assert (estimate.later.accepted, estimate.later.judged) == (1, 1)
    s.tokens += [9]
    controller.learn(s, Proposal(0, 2), [9], (0, 0))
    assert s.lookup_acceptance.first.accepted < 1 < s.lookup_acceptance.first.judged
    assert s.lookup_acceptance.later.judged == 1
    assert s.own_acceptance.first.judged == 0


def test_judged_tokens_end_with_the_first_refused_one() -> None:
    assert judged([1, 2, 3], [1, 2, 3]) == (3, 3)
    assert judged([1, 9, 3], [1, 2, 3]) == (1, 2)
    assert judged([9], [1, 2, 3]) == (0, 1)
    assert judged([1, 2, 3, 4], [1]) == (1, 1)
    assert judged([], [1]) == (0, 0)


def test_acceptance_begins_with_its_prior_and_forgets() -> None:
    estimate, prior = Acceptance(), Chance(0.3, 0.6)
    assert estimate.chance(prior) == prior
    for _ in range(200):
        estimate.see(3, 3)
    assert estimate.chance(prior).first > 0.85 and estimate.chance(prior).later > 0.9
    for _ in range(200):
        estimate.see(0, 1)
    assert estimate.chance(prior).first < 0.1
    assert estimate.chance(prior).later > 0.9, "nothing was learned of later tokens"


def test_expected_tokens() -> None:
    chance = Chance(0.5, 0.8)
    assert [chance.tokens(n) for n in range(4)] == pytest.approx([1, 1.5, 1.9, 2.22])
    assert [chance.reaches(n) for n in range(4)] == pytest.approx([1, 0.5, 0.4, 0.32])


@pytest.mark.parametrize(("tokens", "slower"), [(1, 1.0), (4, 6.0)])
def test_drafts_that_bring_less_than_expected_are_given_up(tokens: int, slower: float) -> None:
    """However sure the estimates are: what counts is what the rounds have brought, and when."""
    target = costs(per_token=0.1)[0]
    controller = Controller(target, {})
    one, four = ([with_acceptance(sequence(), 0.8) for _ in range(n)] for n in (1, 4))
    for _ in range(60):
        drafted = max(controller.choose(one, [FOUND], 50).lookup)
        controller.note(tokens, slower * target.estimate(1, 50, 1 + drafted))
    assert not any(controller.choose(one, [FOUND], 50).lookup)
    assert all(controller.choose(four, [FOUND] * 4, 50).lookup), "other batches, other experience"


@pytest.mark.parametrize(
    ("seconds", "accepted", "best"),
    [
        ({0.0: 1.0, 0.5: 0.9, 0.9: 0.8}, {}, 0.0),  # limits that save little are not worth theirs
        ({0.0: 1.0, 0.5: 0.4, 0.9: 0.35}, {}, 0.5),
        ({0.0: 1.0, 0.5: 0.4, 0.9: 0.1}, {}, 0.9),
        ({0.0: 1.0, 0.5: 0.4, 0.9: 0.1}, {0.9: 0.0}, 0.5),  # experience counts
    ],
)
def test_the_share_of_limits_is_what_pays(
    seconds: dict[float, float], accepted: dict[float, float], best: float
) -> None:
    target, _ = costs(per_token=0.3)
    controller = Controller(target, {share: costs(0.3, x)[1][0.0] for share, x in seconds.items()})
    for share, rate in accepted.items():
        s = sequence()
        s.plan = replace(DraftPlan((), 4), window_share=share)
        for _ in range(100):
            controller.learn(s, None, [1], (round(10 * rate), 10))
    assert controller.window_share(4, 100, 4) == best


@pytest.fixture(scope="module")
def model(llama_checkpoint: Path) -> Transformer:
    return load(llama_checkpoint)


@pytest.mark.parametrize("own", [0.01, 50.0])
@pytest.mark.parametrize("batch", [1, 4])
def test_completions_are_those_of_plain_decoding(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, batch: int, own: float
) -> None:
    """Whatever a self-draft pass costs, so whatever the controller chooses."""
    law = SamplingParams(max_tokens=40, temperature=0.4, top_k=5, seed=3)
    # Said twice, a prompt gives lookup something to find.
    prompts = [p + p for p in random_prompts(model.config.vocab_size, [8, 30, 3, 21, 14])]
    requests = requests_for(prompts, law)
    monkeypatch.setattr("admg.warm_up.WarmUp.own_pass", lambda *_: own * 1e-3)
    monkeypatch.setattr("admg.warm_up.WarmUp.target_pass", lambda *a: 1e-3 + 1e-6 * a[-1])
    done = decode(model, requests, engine_config(drafting(2, drafter="auto"), max_num_seqs=batch))
    plain = decode(model, requests, engine_config())
    keys = [r.key for r in requests]
    assert_identical(
        model, requests, [done[k].token_ids for k in keys], [plain[k].token_ids for k in keys]
    )
    sources = {name for k in keys for name in done[k].stats.drafter_tokens}
    assert "ngram" in sources or own < 1
    assert ("admg" in sources) == (own < 1)
    assert all(bool(done[k].stats.attention_similarity) == (own < 1) for k in keys)


def test_plans_of_every_share_side_by_side(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The share changes from one sequence to the next, and when plans are made anew."""
    shares = cycle(WINDOW_SHARES)
    monkeypatch.setattr("admg.warm_up.WarmUp.own_pass", lambda *_: 1e-5)
    monkeypatch.setattr("admg.warm_up.WarmUp.target_pass", lambda *a: 1e-3 + 1e-6 * a[-1])
    monkeypatch.setattr(Controller, "window_share", lambda *_: next(shares))
    prompts = random_prompts(model.config.vocab_size, [40, 25, 60, 33, 51, 47])
    requests = requests_for(prompts, SamplingParams(max_tokens=30, temperature=0.4, seed=3))
    windows = WindowRule(share="auto", window=8)
    draft = drafting(0, drafter="auto", windows=windows, remake_after=6, lookup_store_tokens=0)
    seen = set()
    made = DraftPlan.limited

    def watched(self: DraftPlan, *args: Any) -> DraftPlan:
        plan = made(self, *args)
        seen.add((plan.window_share, bool(plan.windowed)))
        return plan

    monkeypatch.setattr(DraftPlan, "limited", watched)
    done = decode(model, requests, engine_config(draft, max_num_seqs=3))
    plain = decode(model, requests, engine_config())
    keys = [r.key for r in requests]
    assert_identical(
        model, requests, [done[k].token_ids for k in keys], [plain[k].token_ids for k in keys]
    )
    assert seen >= {(0.0, False), (0.5, True), (0.75, True), (0.9, True)}
    assert sum(done[k].stats.drafter_tokens.get("admg", 0) for k in keys) > 0


@pytest.mark.parametrize("rule", [WindowRule(share=0.5), WindowRule(threshold=0.9)])
def test_limits_that_are_given_are_what_the_warm_up_times(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, rule: WindowRule
) -> None:
    timed = []

    def own_pass(self: WarmUp, *_: int) -> float:
        timed.append(self.plan.window_share)
        return 1e-3

    monkeypatch.setattr(WarmUp, "own_pass", own_pass)
    draft = drafting(0, drafter="auto", windows=rule)
    (prompt,) = random_prompts(model.config.vocab_size, [20])
    decode(model, requests_for([prompt], SamplingParams(max_tokens=4)), engine_config(draft))
    assert set(timed) == {0.5}, "what is limited by a threshold is taken for a half"


def test_a_share_is_chosen_by_nobody_else() -> None:
    with pytest.raises(ValueError, match="window_share is 'auto': it must be a share, or the"):
        drafting(0, windows=WindowRule(share="auto"))


def test_unknown_drafters_are_refused() -> None:
    with pytest.raises(ValueError, match="drafter is 'oracle': it must be auto, admg, ngram or"):
        DraftConfig(drafter="oracle")  # type: ignore[arg-type]


def test_the_engine_without_drafting_has_no_drafters(model: Transformer) -> None:
    assert Engine(model, engine_config(), eos_token_ids=[])._drafting is None
