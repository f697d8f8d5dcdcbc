"""Sets of sub-layers that no similarity chooses, and the draft exit of Draft & Verify."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from admg.config import DraftConfig, SamplingParams
from admg.draft_rules import DropRule, ExitRule, RandomSets, SearchedSets
from admg.drafters.confidence_exit import ConfidenceExit, ExitStart
from admg.engine import Engine
from admg.layer_sets import LayerSearch, LayerSet, drawn
from admg.model import Transformer
from tests.admg.decoding import decode, drafting, engine_config, load, random_prompts, requests_for


@pytest.fixture(scope="module")
def model(llama_checkpoint: Path) -> Transformer:
    return load(llama_checkpoint)


def test_every_set_of_a_size_is_drawn_alike_often() -> None:
    rule = RandomSets(2, 1, seed=4)
    sets = [drawn(rule, 6, f"row-{i}") for i in range(6000)]
    assert all(len(s.attention) == 2 and len(s.mlps) == 1 for s in sets)
    counts = Counter(sets)
    assert len(counts) == 6 * 4  # of layers 1 to 4
    assert max(abs(n - 250) for n in counts.values()) < 6 * 250**0.5
    assert sets == [drawn(rule, 6, f"row-{i}") for i in range(6000)]
    assert sets != [drawn(replace(rule, seed=5), 6, f"row-{i}") for i in range(6000)]


def test_a_rows_random_set_hangs_on_its_key_alone(model: Transformer) -> None:
    draft = drafting(0, sets=RandomSets(2, 1))
    prompts = random_prompts(model.config.vocab_size, [12, 40, 2, 77])
    requests = requests_for(prompts, SamplingParams(max_tokens=12))
    alone = decode(model, requests, engine_config(draft))
    mixed = decode(model, requests[::-1], engine_config(draft, max_num_seqs=3))

    def numbers(done: dict) -> dict:
        return {
            k: (c.stats.dropped_attention_layers, c.stats.acceptance_histogram)
            for k, c in done.items()
        }

    assert numbers(alone) == numbers(mixed)
    assert {tuple(dropped) for dropped, _ in numbers(alone).values()} == {
        drawn(RandomSets(2, 1), model.config.num_layers, r.key).attention for r in requests
    }


def search(rule: SearchedSets, accepted: dict[LayerSet, float], rounds: int) -> LayerSearch:
    """A search in which each set's drafts are accepted as told."""
    found = LayerSearch(rule, 6)
    for _ in range(rounds):
        share = accepted.get(found.current, 0.1)
        found.see(round(share * rule.trial_tokens), rule.trial_tokens)
        found.end_round()
    return found


def test_the_search_finds_the_best_set_and_ends() -> None:
    rule = SearchedSets(2, trial_tokens=100, good_enough=0.9)
    good, best = LayerSet((1, 3)), LayerSet((2, 3))
    assert search(replace(rule, good_enough=1.0), {good: 0.5}, 200).best == good
    ended = search(rule, {good: 0.5, best: 0.95}, 200)
    assert ended.ended and ended.current == best
    before = ended.trials
    ended.see(0, 100)
    ended.end_round()
    assert ended.trials == before and ended.current == best
    assert search(replace(rule, max_trials=3), {}, 100).trials == 3


def test_a_search_that_has_too_few_tokens_waits() -> None:
    found = LayerSearch(SearchedSets(1, trial_tokens=10), 5)
    first = found.current
    for _ in range(3):
        found.see(1, 3)
        found.end_round()
    assert found.current == first and not found.trials
    found.see(1, 1)
    found.end_round()
    assert found.trials == 1


def test_a_search_in_the_engine_changes_plans_between_rounds(model: Transformer) -> None:
    draft = drafting(0, sets=SearchedSets(2, trial_tokens=8, good_enough=1.0))
    engine = Engine(model, engine_config(draft, max_num_seqs=4), eos_token_ids=[])
    prompts = random_prompts(model.config.vocab_size, [12, 40, 2, 77])
    for request in requests_for(prompts, SamplingParams(max_tokens=40)):
        engine.submit(request)
    seen = set()
    while engine.has_work:
        engine.step()
        seen |= {s.plan.dropped for s in engine._scheduler.running}
    assert len(seen) > 2


def test_the_exit_adapts_as_the_authors_code_does() -> None:
    exit = ConfidenceExit(0.6)
    exit.update(4, 4, 12)  # match .5 < .9: up by a tenth of the step
    assert exit.match == 0.5 and exit.threshold == pytest.approx(0.601)
    for _ in range(3):
        exit.update(4, 4, 12)
    assert exit.match == pytest.approx(0.9375) and exit.threshold == pytest.approx(0.602)
    exit.update(12, 12, 12)  # accepted enough, and the draft could not have been longer
    assert exit.threshold == pytest.approx(0.602)
    exit.update(0, 0, 12)
    assert exit.verifications == 5
    rare = ConfidenceExit(0.6, ExitRule(every=2, step=0.1))
    rare.update(4, 0, 4)
    assert rare.threshold == 0.6
    rare.update(4, 0, 4)
    assert rare.threshold == pytest.approx(0.61)
    still = ConfidenceExit(0.6, ExitRule(step=0.0))
    still.update(4, 0, 4)
    assert still.threshold == pytest.approx(0.6)


@pytest.mark.parametrize("carry", [False, True])
def test_a_carried_threshold_is_the_last_sequences(carry: bool) -> None:
    start = ExitStart(0.6, ExitRule(carry=carry, step=0.1))
    first = start.begin()
    first.update(4, 0, 4)
    start.end(first)
    second = start.begin()
    assert second.threshold == pytest.approx(0.61 if carry else 0.6)
    assert second.match == 0


def test_a_carried_threshold_moves_the_statistics_of_later_rows(model: Transformer) -> None:
    prompts = random_prompts(model.config.vocab_size, [30, 40])
    requests = requests_for(prompts, SamplingParams(max_tokens=40))
    for carry in (False, True):
        rule = ExitRule(step=0.05, target=1.0, threshold_decay=0.0, carry=carry)
        draft = drafting(3, exit_threshold=0.0, exit=rule, draft_tokens=8)
        assert draft.order_dependent is carry
        both = decode(model, requests, engine_config(draft))
        alone = [decode(model, [r], engine_config(draft))[r.key] for r in requests]
        assert [both[c.key].token_ids for c in alone] == [c.token_ids for c in alone]
        same = [both[c.key].stats.num_draft_tokens == c.stats.num_draft_tokens for c in alone]
        assert sorted(same) == [not carry, True], "the first alone is as it was without carry"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"exit": ExitRule(carry=True), "verification": "token"}, "exit_carry is True: it must be"),
        ({"sets": SearchedSets(2), "verification": "block"}, "sets is 'a search'"),
        ({"sets": RandomSets(2), "drafter": "auto"}, "drafter is 'auto': it must be admg where"),
        ({"sets": RandomSets(2), "remake_after": 4}, "remake_after is 4: it must be off where"),
        ({"sets": RandomSets(2), "drop": DropRule(count=1, mlps=(2,))}, r"mlps is \[2\]"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DraftConfig(**fields)


def test_sets_that_the_model_is_too_small_for_are_refused(model: Transformer) -> None:
    with pytest.raises(ValueError, match=r"sets.attention is 4: it must be at most 3 here"):
        Engine(model, engine_config(drafting(0, sets=RandomSets(4))), eos_token_ids=[])
    with pytest.raises(ValueError, match="exit_step is 2"):
        ExitRule(step=2)
    with pytest.raises(ValueError, match="at least one sub-layer"):
        RandomSets(0)
