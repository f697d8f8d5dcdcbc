"""Completions follow the target's law exactly: counts over many keys against the model's logits.

The joint law of the first three tokens is enumerated with full passes of the target (top-k keeps
it small), and thousands of sequences that differ in their key alone are decoded. The first token
comes from the prefill, the others from drafts that are often refused. Shared noise, rejection and
plain decoding have to follow the same law; a law that is off by a little must be found out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from scipy import stats

from admg.config import SamplingParams
from admg.model import Transformer
from admg.request import Completion, Request
from tests.admg.decoding import (
    PLAIN,
    assert_identical,
    decode,
    drafting,
    engine_config,
    full_pass,
    load,
    random_prompts,
    requests_for,
)

PROMPT = [17, 1, 64, 5, 99, 23, 40]
SAMPLING = SamplingParams(max_tokens=4, temperature=2.0, top_k=5, top_p=0.97, seed=11)
NUM_SEQUENCES = 2500
Law = dict[tuple[int, ...], float]


@pytest.fixture(scope="module")
def model(checkpoints: Callable[[str], Path]) -> Transformer:
    return load(checkpoints("llama-ungrouped-tied"))


def next_law(model: Transformer, tokens: list[int], sampling: SamplingParams) -> dict[int, float]:
    """Temperature, top-k and top-p by hand on the logits of a full pass, in fp64."""
    logits = full_pass(model, tokens)[0][-1].double() / sampling.temperature
    values, ids = logits.topk(sampling.top_k)
    p = values.softmax(-1)
    kept = p.cumsum(-1) - p < sampling.top_p
    p = p * kept / p[kept].sum()
    return {token: q for token, q in zip(ids.tolist(), p.tolist(), strict=True) if q}


def joint_law(model: Transformer, sampling: SamplingParams) -> Law:
    law: Law = {(): 1.0}
    for _ in range(3):
        law = {
            (*prefix, token): weight * p
            for prefix, weight in law.items()
            for token, p in next_law(model, [*PROMPT, *prefix], sampling).items()
        }
    return law


def p_value(counts: Counter[tuple[int, ...]], law: Law) -> float:
    """Chi-square of counts against a law; cells of less than 5 expected are one cell."""
    total = sum(counts.values())
    assert set(counts) <= set(law), f"impossible outcomes {set(counts) - set(law)}"
    large = [cell for cell, p in law.items() if total * p >= 5]
    observed = [counts[cell] for cell in large]
    expected = [total * law[cell] for cell in large]
    rest = total - sum(expected)
    if rest > 1e-6 * total:
        observed.append(total - sum(observed))
        expected.append(rest)
    assert len(expected) >= 2
    return float(stats.chisquare(observed, expected, sum_check=False).pvalue)


def conditional(law: Law, first: int) -> Law:
    """The law of the second token given the first one."""
    second: Law = {}
    for (a, b, _), p in law.items():
        if a == first:
            second[b,] = second.get((b,), 0.0) + p
    mass = sum(second.values())
    return {cell: p / mass for cell, p in second.items()}


@pytest.fixture(scope="module")
def law(model: Transformer) -> Law:
    law = joint_law(model, SAMPLING)
    assert sum(law.values()) == pytest.approx(1) and len(law) > 30
    return law


DRAFTS = {
    "plain": PLAIN,
    "shared": drafting(2, draft_tokens=3),
    "token": drafting(2, draft_tokens=3, verification="token"),
    "token-exit": drafting(
        3, draft_tokens=3, verification="token", exit_threshold=0.5, keep_first=0, keep_last=0
    ),
    "block": drafting(2, draft_tokens=3, verification="block"),
}
REJECTION = ["token", "block"]


@pytest.fixture(scope="module")
def sample(model: Transformer) -> Callable[[str], list[Completion]]:
    """All sequences decoded with one of `DRAFTS`, done once."""

    @cache
    def decoded(name: str) -> list[Completion]:
        requests = [Request(PROMPT, SAMPLING, f"row {i}") for i in range(NUM_SEQUENCES)]
        config = engine_config(DRAFTS[name], max_num_seqs=128, max_model_len=32)
        done = decode(model, requests, config)
        return [done[r.key] for r in requests]

    return decoded


@pytest.mark.parametrize("name", DRAFTS)
def test_first_three_tokens_follow_the_targets_law(
    model: Transformer, sample: Callable[[str], list[Completion]], law: Law, name: str
) -> None:
    done = sample(name)
    if name != "plain":
        accepted = sum(c.stats.num_accepted_draft_tokens for c in done)
        drafted = sum(c.stats.num_draft_tokens for c in done)
        assert 0.1 < accepted / drafted < 0.9, "drafts must be kept and refused to test anything"
    triples = Counter(tuple(c.token_ids[:3]) for c in done)
    assert p_value(triples, law) > 1e-4
    firsts = Counter((c.token_ids[0],) for c in done)
    marginal: Law = {}
    for cell, p in law.items():
        marginal[cell[:1]] = marginal.get(cell[:1], 0.0) + p
    assert p_value(firsts, marginal) > 1e-4
    for (first,), _ in firsts.most_common(3):
        seconds = Counter((c.token_ids[1],) for c in done if c.token_ids[0] == first)
        assert p_value(seconds, conditional(law, first)) > 1e-4
    # The test has teeth: the same counts do not fit a law of slightly another temperature.
    other = joint_law(model, replace(SAMPLING, temperature=2.5))
    assert p_value(triples, {cell: other.get(cell, 0.0) for cell in law | other}) < 1e-6


def test_rejection_is_another_sample_of_the_law(
    sample: Callable[[str], list[Completion]],
) -> None:
    """Shared noise gives plain decoding's own tokens; rejection is equal in law alone."""
    plain, shared, token, block = (
        [c.token_ids for c in sample(name)] for name in ("plain", "shared", "token", "block")
    )
    assert sum(a != b for a, b in zip(shared, plain, strict=True)) <= NUM_SEQUENCES / 1000
    for other in (token, block):
        assert sum(a != b for a, b in zip(other, plain, strict=True)) > NUM_SEQUENCES / 10


@pytest.mark.parametrize("name", REJECTION)
def test_rejection_of_greedy_drafts_is_plain_decoding(model: Transformer, name: str) -> None:
    prompts = random_prompts(model.config.vocab_size, [5, 40, 1, 18, 70, 33])
    requests = requests_for(prompts, SamplingParams(max_tokens=25))
    plain = decode(model, requests, engine_config())
    done = decode(model, requests, engine_config(DRAFTS[name], max_num_seqs=4))
    ids = [[d[r.key].token_ids for r in requests] for d in (done, plain)]
    assert_identical(model, requests, *ids)


@pytest.mark.parametrize("name", REJECTION)
def test_a_draft_of_the_target_itself_is_never_refused(model: Transformer, name: str) -> None:
    """p = q: nothing but rounding can refuse a token, and every round gives its bonus token."""
    prompts = random_prompts(model.config.vocab_size, [5, 40, 1, 18, 70, 33])
    sampling = SamplingParams(max_tokens=26, temperature=1.0)
    draft = drafting(0, draft_tokens=4, verification=name)
    done = decode(model, requests_for(prompts, sampling), engine_config(draft, max_num_seqs=4))
    for completion in done.values():
        assert completion.stats.draft_acceptance_rate > 0.95
        assert completion.stats.mean_acceptance_length > 4.5


@pytest.mark.parametrize("name", REJECTION)
def test_rejection_depends_on_nothing_beside_the_sequence(model: Transformer, name: str) -> None:
    prompts = random_prompts(model.config.vocab_size, [5, 40, 1, 18, 70, 33])
    requests = requests_for(prompts, SamplingParams(max_tokens=20, temperature=0.8, seed=4))
    draft = DRAFTS[name]
    alone = decode(model, requests, engine_config(draft))
    others = decode(model, requests[::-1], engine_config(draft, max_num_seqs=4, prefill_tokens=9))
    ids = [[d[r.key].token_ids for r in requests] for d in (others, alone)]
    assert_identical(model, requests, *ids)
