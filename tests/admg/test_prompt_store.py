"""Prompts that are prefilled once for several engines: nothing but the time changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from admg.config import DraftConfig, SamplingParams
from admg.draft_rules import WindowRule
from admg.engine import Engine
from admg.model import Transformer
from admg.prompt_store import PromptStore
from admg.request import Completion, Request
from tests.admg.decoding import (
    PLAIN,
    assert_identical,
    drafting,
    engine_config,
    load,
    random_prompts,
    requests_for,
)

LAWS = [SamplingParams(max_tokens=12), SamplingParams(max_tokens=9, temperature=1.0, seed=4)]
WINDOWS = WindowRule(share=0.5, window=8)
OBSERVE = drafting(1, windows=WINDOWS)
DRAFTS = {
    "plain": PLAIN,
    "dropped": drafting(2, hole_filling=False),
    "filled": drafting(2),
    "fixed": drafting(attention=(1, 3), hole_filling=False),
    "limited": drafting(1, windows=WINDOWS),
    "remade": drafting(2, remake_after=3),
    "remade limits": drafting(1, windows=WINDOWS, remake_after=3),
}


@pytest.fixture(scope="module")
def model(llama_checkpoint: Path) -> Transformer:
    return load(llama_checkpoint)


@pytest.fixture(scope="module")
def requests(model: Transformer) -> list[Request]:
    prompts = random_prompts(model.config.vocab_size, [40, 1, 65, 17, 30])
    return requests_for(prompts, [LAWS[i % 2] for i in range(len(prompts))])


def decoded(
    model: Transformer, requests: list[Request], draft: DraftConfig, store: PromptStore | None
) -> tuple[list[Completion], Engine]:
    config = engine_config(draft, max_num_seqs=3, kv_budget_bytes=2**22, prefill_tokens=32)
    engine = Engine(model, config, eos_token_ids=[], prompts=store)
    return sorted(engine.generate(requests), key=lambda c: c.key), engine


def test_completions_plans_and_steps_are_those_without_a_store(model, requests) -> None:
    store = PromptStore(OBSERVE, 2**30)
    for turn, draft in enumerate(DRAFTS.values()):
        mine, engine = decoded(model, requests, draft, store)
        lone, _ = decoded(model, requests, draft, None)
        plain, _ = decoded(model, requests, PLAIN, None)
        ids = [c.token_ids for c in mine]
        assert_identical(model, requests, ids, [c.token_ids for c in plain])
        spared = sum(len(r.prompt_token_ids) - 1 for r in requests)
        assert engine.counters.num_cached_tokens == (spared if turn else 0)
        assert engine.counters.prompt_tokens == spared + len(requests)
        for a, b in zip(mine, lone, strict=True):
            assert a.stats.attention_similarity == pytest.approx(
                b.stats.attention_similarity, abs=1e-5
            )
            assert a.stats.dropped_attention_layers == b.stats.dropped_attention_layers
            assert a.stats.num_spec_steps == b.stats.num_spec_steps
            assert a.stats.acceptance_histogram == b.stats.acceptance_histogram
    assert len(store) == len(requests) - 1  # a prompt of one token has nothing to keep


@pytest.mark.parametrize("mean", ["last", "decay"])
def test_other_means(model, requests, mean: str) -> None:
    draft = drafting(2, similarity=mean, similarity_decay=0.9)
    store = PromptStore(draft, 2**30)
    for _ in range(2):
        mine, _ = decoded(model, requests, draft, store)
    lone, _ = decoded(model, requests, draft, None)
    for a, b in zip(mine, lone, strict=True):
        assert a.stats.attention_similarity == pytest.approx(b.stats.attention_similarity, abs=1e-5)


def test_what_does_not_fit_is_computed_again(model, requests) -> None:
    store = PromptStore(OBSERVE, 0)
    mine, engine = decoded(model, requests, DRAFTS["filled"], store)
    lone, _ = decoded(model, requests, DRAFTS["filled"], None)
    assert len(store) == 0 and engine.counters.num_cached_tokens == 0
    assert [c.token_ids for c in mine] == [c.token_ids for c in lone]


@pytest.mark.parametrize(
    ("draft", "name"),
    [
        (drafting(1, similarity="last"), "similarity"),
        (drafting(1), "hole_filling"),
        (drafting(1, hole_filling=False, windows=WINDOWS), "windows"),
    ],
)
def test_what_the_store_has_not_seen_is_refused(model, draft: DraftConfig, name: str) -> None:
    store = PromptStore(drafting(1, hole_filling=False), 2**20)
    with pytest.raises(ValueError, match=name):
        decoded(model, [], draft, store)
    decoded(model, [], drafting(2, hole_filling=False), store)
    decoded(model, [], PLAIN, store)
