"""What prompts share is computed once, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from admg.config import DraftConfig, SamplingParams
from admg.engine import Engine
from admg.model import Transformer
from admg.request import Request
from tests.admg.decoding import (
    PLAIN,
    assert_identical,
    drafting,
    engine_config,
    full_pass,
    load,
    random_prompts,
    requests_for,
)

SHARED = 70
LAWS = [SamplingParams(max_tokens=12), SamplingParams(max_tokens=9, temperature=1.0, seed=4)]


@pytest.fixture(scope="module")
def model(llama_checkpoint: Path) -> Transformer:
    return load(llama_checkpoint)


def sharing(model: Transformer, tails: list[int], shared: int = SHARED) -> list[Request]:
    """Requests whose prompts begin alike and go on for `tails` tokens."""
    vocab = model.config.vocab_size
    prefix = random_prompts(vocab, [shared], seed=1, special=1 if shared else None)[0]
    ends = random_prompts(vocab, tails, seed=2, special=None)
    for i, end in enumerate(ends):
        end[0] = 2 + i  # no two go on alike
    return requests_for([prefix + end for end in ends], [LAWS[i % 2] for i in range(len(tails))])


def engine_of(model: Transformer, draft: DraftConfig = PLAIN, **sizes: Any) -> Engine:
    config = engine_config(draft, **({"max_num_seqs": 3, "kv_budget_bytes": 2**22} | sizes))
    return Engine(model, config, eos_token_ids=[])


def alone(model: Transformer, requests: list[Request], draft: DraftConfig) -> list[Any]:
    """Completions of engines that see one request each: nothing to share."""
    done = []
    for request in requests:
        engine = engine_of(model, draft)
        done += list(engine.generate([request]))
        assert engine.counters.num_cached_tokens == 0
    return done


@pytest.mark.parametrize("prefill_tokens", [1024, 32])
@pytest.mark.parametrize("mean", ["mean", "last", "decay"])
def test_completions_plans_and_similarities_are_those_without_sharing(
    model, mean: str, prefill_tokens: int
) -> None:
    draft = drafting(2, similarity=mean, similarity_decay=0.9)
    requests = sharing(model, [5, 1, 30, 12, 3])
    engine = engine_of(model, draft, prefill_tokens=prefill_tokens)
    done = sorted(engine.generate(requests), key=lambda c: c.key)
    lone = alone(model, requests, draft)
    assert engine.counters.num_cached_tokens == SHARED * len(requests)
    assert engine.counters.prompt_tokens == sum(len(r.prompt_token_ids) for r in requests)
    assert_identical(model, requests, [c.token_ids for c in done], [c.token_ids for c in lone])
    for mine, theirs in zip(done, lone, strict=True):
        assert mine.stats.attention_similarity == pytest.approx(
            theirs.stats.attention_similarity, abs=1e-5
        )
        assert mine.stats.dropped_attention_layers == theirs.stats.dropped_attention_layers


def test_the_copied_cache_is_the_computed_one(model) -> None:
    requests = sharing(model, [4, 9])
    engine = engine_of(model)
    for request in requests:
        engine.submit(request)
    engine.step()
    assert len(engine._scheduler.running) == 2
    for s in engine._scheduler.running:
        _, arena, extent = full_pass(model, s.tokens[: s.computed])
        for ours, theirs in zip(
            engine._arena.copy(s.extent, s.computed), arena.copy(extent, s.computed), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_prompt_that_is_the_prefix_itself_keeps_a_token_to_compute(model) -> None:
    requests = sharing(model, [6, 2])
    whole = replace(requests[0], prompt_token_ids=requests[0].prompt_token_ids[:SHARED], key="2")
    requests.append(whole)
    engine = engine_of(model)
    done = sorted(engine.generate(requests), key=lambda c: c.key)
    assert engine.counters.num_cached_tokens == 3 * (SHARED - 1)
    lone = [c.token_ids for c in alone(model, requests, PLAIN)]
    assert_identical(model, requests, [c.token_ids for c in done], lone)


def test_prompts_with_little_or_nothing_in_common_share_nothing(model) -> None:
    for shared in (0, 15):
        engine = engine_of(model)
        assert len(list(engine.generate(sharing(model, [20, 30, 40], shared)))) == 3
        assert engine.counters.num_cached_tokens == 0


def test_another_prefix_takes_the_place_of_the_first(model) -> None:
    engine = engine_of(model)
    first = sharing(model, [5, 6])
    list(engine.generate(first))
    before = engine.counters.num_cached_tokens
    others = [replace(r, prompt_token_ids=r.prompt_token_ids[1:]) for r in sharing(model, [7, 8])]
    list(engine.generate(others))
    assert engine.counters.num_cached_tokens - before == 2 * (SHARED - 1)


def test_the_copy_takes_a_small_share_of_the_arena(model) -> None:
    requests = sharing(model, [5, 6], shared=400)
    engine = engine_of(model, kv_budget_bytes=2 * 448 * 2 * 5 * 2 * 16 * 4)
    list(engine.generate(requests))
    spared = engine.counters.num_cached_tokens // 2
    assert spared == int(engine._arena.num_slots * 0.05)
