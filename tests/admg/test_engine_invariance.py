"""Nothing but a sequence's own prompt, parameters, seed and key moves its tokens (T7)."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from admg.checkpoint import Weights
from admg.config import DraftConfig, SamplingParams, Verification
from admg.engine import Engine
from admg.model import Transformer
from admg.request import Completion, Request
from tests.admg.decoding import (
    PLAIN,
    assert_identical,
    decode,
    drafting,
    engine_config,
    load,
    load_changed,
    random_prompts,
)

LENGTHS = [12, 40, 3, 77, 1, 25, 25, 60]
LAWS = [
    SamplingParams(max_tokens=20, temperature=1.0, seed=8),
    SamplingParams(max_tokens=14),
    SamplingParams(max_tokens=26, temperature=0.7, top_p=0.9, seed=1),
    SamplingParams(max_tokens=9, temperature=1.2, top_k=10, repetition_penalty=1.3, seed=8),
]


@pytest.fixture(scope="module")
def model(llama_checkpoint: Path) -> Transformer:
    return load(llama_checkpoint)


@pytest.fixture(scope="module")
def requests(model: Transformer) -> list[Request]:
    prompts = random_prompts(model.config.vocab_size, LENGTHS)
    return [Request(p, LAWS[i % len(LAWS)], f"key-{i}") for i, p in enumerate(prompts)]


@pytest.fixture(scope="module")
def reference(model: Transformer, requests: list[Request]) -> dict[str, Completion]:
    return decode(model, requests, engine_config())


def assert_same_rows(
    model: Transformer,
    requests: list[Request],
    done: dict[str, Completion],
    reference: dict[str, Completion],
) -> None:
    ids = [[d[r.key].token_ids for r in requests] for d in (done, reference)]
    assert_identical(model, requests, *ids)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("draft", [PLAIN, drafting(2)], ids=["plain", "admg"])
def test_order_and_batch_size(model, requests, reference, draft: DraftConfig, seed: int) -> None:
    order = random.Random(seed).sample(requests, len(requests))
    config = engine_config(draft, max_num_seqs=[2, 3, 8][seed], prefill_tokens=[7, 1024, 30][seed])
    assert_same_rows(model, requests, decode(model, order, config), reference)


def test_neighbours(model, requests, reference) -> None:
    """A long row, rows of other laws and rows that are refused come and go beside the others."""
    strangers = [
        Request(random_prompts(320, [400], seed=2)[0], SamplingParams(max_tokens=90), "long"),
        Request([], SamplingParams(), "empty"),
        Request([3, 4], SamplingParams(max_tokens=40, temperature=2.0, ignore_eos=True), "hot"),
        Request([9], SamplingParams(max_tokens=1), "short"),
    ]
    for at in (0, 3, len(requests)):
        rows = [*requests[:at], *strangers, *requests[at:]]
        done = decode(model, rows, engine_config(drafting(3), max_num_seqs=4))
        assert done["empty"].finish_reason == "error"
        assert_same_rows(model, requests, done, reference)


@pytest.mark.parametrize(
    "draft",
    [
        drafting(4, keep_first=0, draft_tokens=7),
        drafting(threshold=0.7, similarity="last", draft_tokens=2),
        drafting(1, exit_threshold=0.9, draft_tokens=10),
        drafting(threshold=0.65, remake_every=4, keep_first=0, keep_last=0),
    ],
)
def test_drafter_and_plan(model, requests, reference, draft: DraftConfig) -> None:
    done = decode(model, requests, engine_config(draft, max_num_seqs=5))
    assert_same_rows(model, requests, done, reference)


def test_arrival_while_others_run(model, requests, reference) -> None:
    engine = Engine(model, engine_config(drafting(2), max_num_seqs=4), eos_token_ids=[])
    waiting, done = list(requests), {}
    while engine.has_work or waiting:
        if waiting:
            engine.submit(waiting.pop())
        done |= {c.key: c for c in engine.step()}
    assert_same_rows(model, requests, done, reference)


def test_seed_and_key_name_the_noise(model: Transformer, requests: list[Request]) -> None:
    row = requests[0]
    twins = [replace(row, key="a"), replace(row, key="b")]
    seeded = Request(row.prompt_token_ids, replace(row.sampling, seed=9), "a2")
    config = engine_config(drafting(2), max_num_seqs=3)
    first = decode(model, [*twins, seeded], config)
    assert len({tuple(c.token_ids) for c in first.values()}) == 3
    again = decode(model, [seeded, *twins], config)
    assert {k: c.token_ids for k, c in first.items()} == {k: c.token_ids for k, c in again.items()}
    greedy = [Request(row.prompt_token_ids, SamplingParams(max_tokens=9), k) for k in "xy"]
    assert len({tuple(c.token_ids) for c in decode(model, greedy, config).values()}) == 1


@pytest.mark.parametrize("drafter", ["admg", "ngram", "auto"])
def test_requests_that_forbid_drafting(model, requests, drafter) -> None:
    """Alone, every pass is a plain one that nobody watches; among others, they draft nothing."""
    prefix = random_prompts(model.config.vocab_size, [32], seed=5)[0]
    rows = [replace(r, prompt_token_ids=[*prefix, *r.prompt_token_ids]) for r in requests]
    reference = decode(model, rows, engine_config())
    config = engine_config(drafting(2, drafter=drafter, remake_after=3), max_num_seqs=4)
    engine = Engine(model, config, eos_token_ids=[])
    mixed = [replace(r, draft=i % 2 == 0) for i, r in enumerate(rows)]
    done = {c.key: c for c in engine.generate(mixed)}  # and the prefix is known from here on
    assert_same_rows(model, rows, done, reference)
    assert all(done[r.key].stats.num_draft_tokens == 0 for r in mixed if not r.draft)

    ngram, controller = engine._drafting._ngram, engine._drafting._controller
    stored, chosen = len(ngram._store) if ngram else 0, dict(controller.rounds) if controller else 0
    watched = []
    with pytest.MonkeyPatch.context() as patch:
        forward = model.forward

        def noted(*args, members=None, observers=(), **more):
            watched.append((members, list(observers)))
            return forward(*args, members=members, observers=observers, **more)

        patch.setattr(model, "forward", noted)
        done = {c.key: c for c in engine.generate(replace(r, draft=False) for r in rows)}
    assert watched and all(not members and not seen for members, seen in watched)
    assert engine.counters.num_cached_tokens >= len(rows) * len(prefix)
    assert_same_rows(model, rows, done, reference)
    assert all(c.stats.acceptance_histogram == [c.stats.num_spec_steps] for c in done.values())
    assert all(c.stats.dropped_attention_layers == [] for c in done.values())
    # Nor does anybody choose, or draft later from what they say: it has been said before.
    assert ngram is None or len(ngram._store) == stored > 0
    assert controller is None or controller.rounds == chosen


def nan_token(weights: Weights) -> None:
    """The embedding of token 13 is not a number."""
    assert weights.head is not weights.embed
    weights.embed[13] = torch.nan


def unlikely_token(weights: Weights) -> None:
    """Nobody comes upon token 13, drafts neither."""
    weights.head[13] = 0


@pytest.mark.parametrize("draft", [PLAIN, drafting(2)], ids=["plain", "admg"])
@pytest.mark.parametrize("places", [1, 3])
def test_a_row_that_is_not_finite_poisons_no_other(
    llama_checkpoint: Path, requests: list[Request], draft: DraftConfig, places: int
) -> None:
    """What it left in its slots is there when the next sequence gets them."""
    healthy = load_changed(llama_checkpoint, unlikely_token)
    poisoned = load_changed(llama_checkpoint, lambda w: (unlikely_token(w), nan_token(w)))
    bad = [Request([5, 13, *[7] * n], LAWS[0], f"bad-{n}") for n in (3, 60, 100)]
    good = [r for r in requests if 13 not in r.prompt_token_ids]
    reference = decode(healthy, good, engine_config())
    assert not any(13 in c.token_ids for c in reference.values()) and len(good) > 5
    rows = [bad[0], *good[:2], bad[1], *good[2:5], bad[2], *good[5:]]
    done = decode(poisoned, rows, engine_config(draft, max_num_seqs=places, prefill_tokens=64))
    for request in bad:
        completion = done[request.key]
        assert completion.finish_reason == "error"
        assert completion.error_code == "model_output_invalid"
        assert completion.token_ids == [] and completion.error_message
    assert_same_rows(healthy, good, done, reference)


@pytest.mark.parametrize("verification", get_args(Verification))
def test_a_refused_draft_token_that_is_not_finite_harms_nobody(
    llama_checkpoint: Path, requests: list[Request], verification: str
) -> None:
    """The draft comes upon the token, plain decoding does not: the completion must not differ."""
    healthy, poisoned = load(llama_checkpoint), load_changed(llama_checkpoint, nan_token)
    good = [r for r in requests if r.sampling.greedy and 13 not in r.prompt_token_ids]
    reference = decode(healthy, good, engine_config())
    assert not any(13 in c.token_ids for c in reference.values())
    draft = drafting(2, verification=verification)
    done = decode(poisoned, good, engine_config(draft, max_num_seqs=4))
    assert_same_rows(healthy, good, done, reference)
