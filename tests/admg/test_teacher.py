"""Drafts told from known completions: against the engine's own first round behind each token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from admg.config import SamplingParams
from admg.engine import Engine
from admg.model import Transformer
from admg.plan import DraftPlan
from admg.request import Request
from admg.teacher import Taught, Teacher
from tests.admg.decoding import decode, drafting, engine_config, load, random_prompts, requests_for

PLANS = [DraftPlan((1, 3), 4), DraftPlan((2,), 4, (1, 3)), DraftPlan((), 4, (2,))]


@pytest.fixture(scope="module")
def model(llama_checkpoint: Path) -> Transformer:
    return load(llama_checkpoint)


def first_round(model: Transformer, request: Request, plan: DraftPlan, most: int, **more) -> Taught:
    """What the first draft of a request comes to in the engine."""
    draft = drafting(
        attention=plan.dropped,
        mlps=plan.dropped_mlps,
        hole_filling=False,
        draft_tokens=most,
        **more,
    )
    engine = Engine(model, engine_config(draft), eos_token_ids=[])
    engine.submit(request)
    engine.step()
    counters = engine.counters
    return Taught(1, counters.num_draft_tokens, counters.num_accepted_draft_tokens)


@pytest.mark.parametrize("plan", PLANS)
def test_drafts_are_the_engines_behind_every_token(model: Transformer, plan: DraftPlan) -> None:
    prompts = random_prompts(model.config.vocab_size, [12, 70, 3])
    requests = requests_for(prompts, SamplingParams(max_tokens=18))
    plain = decode(model, requests, engine_config())
    completions = [plain[r.key].token_ids for r in requests]
    teacher = Teacher(model, requests, completions, draft_tokens=4)
    found = teacher.judge(plan)
    assert found == teacher.judge(plan), "what a trial leaves in the cache must not last"
    theirs = []
    for prompt, ids in zip(prompts, completions, strict=True):
        total = Taught()
        for at in range(0, len(ids) - 1, 4):
            # The prefill gives token `at` again, and the round drafts behind it.
            rest = Request([*prompt, *ids[:at]], SamplingParams(max_tokens=len(ids) + 1 - at))
            total += first_round(model, rest, plan, min(4, len(ids) - 1 - at))
        theirs.append(total)
    assert found == theirs
    whole = sum(found, Taught())
    assert 0 < whole.accepted < whole.drafted


def test_sampled_drafts_have_the_rows_own_noise(model: Transformer) -> None:
    law = SamplingParams(max_tokens=6, temperature=0.8, seed=3, repetition_penalty=1.2)
    requests = requests_for(random_prompts(model.config.vocab_size, [12, 70, 3, 9]), law)
    plain = decode(model, requests, engine_config())
    completions = [plain[r.key].token_ids for r in requests]
    for more in ({}, {"exit_threshold": 0.2}):
        teacher = Teacher(model, requests, completions, draft_tokens=5, **more)
        found = teacher.judge(PLANS[0])
        theirs = [
            first_round(
                model,
                replace(r, sampling=replace(law, max_tokens=7)),
                PLANS[0],
                5,
                **more,
            )
            for r in requests
        ]
        assert [t.accepted for t in found] == [t.accepted for t in theirs]
        if not more:
            assert found == theirs
    whole = sum(found, Taught())
    assert whole.accepted > 0 and whole.drafted < 20, "the exit must have ended a draft"


def test_a_draft_that_leaves_nothing_out_is_the_target(model: Transformer) -> None:
    requests = requests_for(random_prompts(model.config.vocab_size, [9, 30]), SamplingParams())
    plain = decode(model, requests, engine_config())
    completions = [plain[r.key].token_ids[:14] for r in requests]
    whole = sum(
        Teacher(model, requests, completions, draft_tokens=4).judge(DraftPlan((), 4)), Taught()
    )
    assert whole == Taught(2 * 4, 2 * 13, 2 * 13)
    assert whole.tokens_per_pass == 1 + 26 / 8 and whole.draft_tokens == 26 / 8


def test_nothing_to_draft_is_refused(model: Transformer) -> None:
    requests = requests_for([[3, 4]], SamplingParams())
    with pytest.raises(ValueError, match="nothing to draft"):
        Teacher(model, requests, [[5]], draft_tokens=4)
