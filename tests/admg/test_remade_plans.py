"""Plans made anew from verified tokens, against similarities of a pass from scratch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from admg import learning
from admg.config import DraftConfig, SamplingParams
from admg.engine import Engine
from admg.model import Transformer
from admg.plan import choose_dropped
from admg.request import Completion
from tests.admg.decoding import (
    decode,
    drafting,
    engine_config,
    load,
    outputs_and_cosines,
    random_prompts,
    requests_for,
)

LENGTHS = [12, 40, 2, 77, 1, 25, 60]
LAWS = [SamplingParams(max_tokens=16), SamplingParams(max_tokens=16, temperature=1.0, seed=8)]
WHOLE = {"keep_first": 0, "keep_last": 0}


@pytest.fixture(scope="module")
def model(llama_checkpoint: Path) -> Transformer:
    return load(llama_checkpoint)


def run(
    model: Transformer, draft: DraftConfig, **sizes: int
) -> tuple[dict[str, Completion], dict[str, int]]:
    """Completions, and for each sequence its number of tokens when its plan was made anew.

    Until then its plan is the prompt's; then it rests on the verified tokens after the prompt.
    """
    prompts = random_prompts(model.config.vocab_size, LENGTHS)
    requests = requests_for(prompts, [LAWS[i % 2] for i in range(len(prompts))])
    engine = Engine(model, engine_config(draft, max_num_seqs=3, **sizes), eos_token_ids=[])
    for request in requests:
        engine.submit(request)
    done, remade, before = {}, {}, {}
    while engine.has_work:
        done |= {c.key: c for c in engine.step()}
        for s in engine._scheduler.decoding():
            key, verified = s.request.key, s.computed - s.prompt_length
            asked = s.learned.similarity_sums is not None
            assert asked == (verified < (draft.remake_after or 0))
            if not asked and key not in remade:
                remade[key] = s.computed
            start, end = (0, s.prompt_length) if asked else (s.prompt_length, remade[key])
            _, cosines = outputs_and_cosines(model, s.tokens[:end])
            expected = cosines[:, start:end].mean(dim=1)
            ours = torch.tensor(s.similarity).double()
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
            assert s.plan is not None and s.plan.draft_tokens == draft.draft_tokens
            assert s.plan.dropped == choose_dropped(s.similarity, draft.drop)
            if key in before and s.plan.dropped != before[key]:
                assert remade[key] == s.computed, "a plan changes when it is made anew"
            before[key] = s.plan.dropped
    return done, remade


@pytest.mark.parametrize(
    "draft",
    [
        drafting(threshold=0.65, remake_after=6, **WHOLE),
        drafting(threshold=0.65, remake_after=1, hole_filling=False, **WHOLE),
        drafting(threshold=0.7, remake_after=6, verification="token", **WHOLE),
    ],
    ids=["filled", "first-round", "rejection"],
)
def test_plans_are_made_anew_from_the_first_verified_tokens(
    model: Transformer, draft: DraftConfig
) -> None:
    done, remade = run(model, draft)
    assert len(remade) == len(done), "16 tokens are enough for every sequence"
    first = decode_with_first_plans(model, draft)
    changed = [
        key
        for key, completion in done.items()
        if completion.stats.dropped_attention_layers != first[key].stats.dropped_attention_layers
    ]
    assert changed, "nothing was tested unless some plan became another"


def decode_with_first_plans(model: Transformer, draft: DraftConfig) -> dict[str, Completion]:
    fields = {"hole_filling": draft.hole_filling, "verification": draft.verification}
    plain = DraftConfig(draft_tokens=draft.draft_tokens, drop=draft.drop, **fields)
    prompts = random_prompts(model.config.vocab_size, LENGTHS)
    requests = requests_for(prompts, [LAWS[i % 2] for i in range(len(prompts))])
    return decode(model, requests, engine_config(plain, max_num_seqs=3))


def test_refused_tokens_have_no_say(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    teach = learning.VerifiedObservers.teach
    monkeypatch.setattr(
        learning.VerifiedObservers,
        "teach",
        lambda self, first, verified: teach(self, first, [n + 1 for n in verified]),
    )
    with pytest.raises(AssertionError):
        run(model, drafting(2, remake_after=6, **WHOLE))


@pytest.mark.parametrize("first", [None, 5])
def test_plans_are_made_again_and_again_from_all_verified_tokens(
    model: Transformer, first: int | None
) -> None:
    """Of which the latest count most; a sequence's plan changes at no other time."""
    every, decay = 4, 0.8
    draft = drafting(
        threshold=0.65, remake_after=first, remake_every=every, similarity_decay=decay, **WHOLE
    )
    prompts = random_prompts(model.config.vocab_size, LENGTHS)
    requests = requests_for(prompts, [LAWS[i % 2] for i in range(len(prompts))])
    engine = Engine(model, engine_config(draft, max_num_seqs=3), eos_token_ids=[])
    for request in requests:
        engine.submit(request)
    made: dict[str, int] = {}  # by key, the sequence's verified tokens when its plan was made
    times: dict[str, int] = {}
    plans: dict[str, set[tuple[int, ...]]] = {}
    while engine.has_work:
        engine.step()
        for s in engine._scheduler.decoding():
            key, verified = s.request.key, s.computed - s.prompt_length
            wanted = made[key] + every if key in made else first or every
            if verified >= wanted:
                made[key], times[key] = verified, times.get(key, 0) + 1
            if key not in made:
                continue
            assert s.plan is not None
            end = s.prompt_length + made[key]
            _, cosines = outputs_and_cosines(model, s.tokens[:end])
            weights = decay ** torch.arange(made[key] - 1, -1, -1, dtype=torch.float64)
            expected = (cosines[:, s.prompt_length :] * weights).sum(1) / weights.sum()
            torch.testing.assert_close(
                torch.tensor(s.similarity).double(), expected, atol=1e-5, rtol=0
            )
            assert s.plan.dropped == choose_dropped(s.similarity, draft.drop)
            plans.setdefault(key, set()).add(s.plan.dropped)
    assert min(times.values()) >= 2, "every sequence is long enough for a second plan"
    assert max(map(len, plans.values())) > 1, "nothing was tested unless some plan changed"


@pytest.mark.parametrize("field", ["remake_after", "remake_every", "hole_filling_decay"])
def test_values_outside_their_range_are_refused_by_name(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        DraftConfig(**{field: 0})
