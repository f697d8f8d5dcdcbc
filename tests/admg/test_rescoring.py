"""Forced tokens: how far they are from being drawn, and what of that rounding explains."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from admg.config import EngineConfig, SamplingParams
from admg.engine import Engine
from admg.model import Transformer
from admg.request import Completion, Request, Score
from admg.sampling import Sampler
from tests.admg.decoding import budget_for, decode, drafting, engine_config, load, random_prompts
from tests.admg.plain_laws import row, spread_logits

LAWS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.3},
]


@settings(derandomize=True, deadline=None, max_examples=200, database=None)
@given(st.data())
def test_a_token_raised_by_its_deficit_is_drawn(data: st.DataObject) -> None:
    vocab = data.draw(st.integers(2, 40))
    fields = {
        "temperature": data.draw(st.sampled_from([0.0, 0.3, 1.0, 2.0])),
        "top_k": data.draw(st.sampled_from([0, 1, 2, 7])),
    }
    rows = [row(key=str(data.draw(st.integers(0, 1000))), **fields)]
    logits = torch.tensor([spread_logits(vocab, data.draw(st.integers(0, 2**32 - 1)))]).float()
    sampler = Sampler(vocab)
    drawn = int(sampler.draw(logits, rows))
    tokens = torch.arange(vocab)
    deficits = sampler.deficits(logits.expand(vocab, -1), rows * vocab, tokens)
    assert deficits[drawn] == pytest.approx(0, abs=1e-5)
    kept = sampler.laws(logits, rows)[0] > 0
    for token, deficit in enumerate(deficits.tolist()):
        raised, nearly = logits.clone(), logits.clone()
        raised[0, token] += deficit + 1e-3
        nearly[0, token] += deficit - 1e-3
        assert int(sampler.draw(raised, rows)) == token
        # One that was cut off takes the place of another, maybe the winner's: less may do for it.
        assert not kept[token] or token == drawn or int(sampler.draw(nearly, rows)) == drawn


@pytest.mark.parametrize("cut", [{"top_p": 0.5}, {"min_p": 0.3}, {"top_k": 2}])
def test_what_is_cut_off_misses_the_last_that_is_kept(cut: dict[str, float]) -> None:
    logits = torch.tensor([[3.0, 2.5, 1.0, -4.0]])
    sampler, rows = Sampler(4), [row(temperature=2.0, **cut)]
    kept = sampler.laws(logits, rows)[0] > 0
    assert kept.any() and not kept[3]
    deficit = sampler.deficits(logits, rows, torch.tensor([3]))
    assert deficit >= logits[0][kept].min() - logits[0, 3] - 1e-5


def test_a_banned_token_is_never_a_near_tie() -> None:
    rows = [row(banned=(1,), temperature=t) for t in (0.0, 1.0)]
    found = Sampler(3).deficits(torch.zeros(2, 3), rows, torch.tensor([1, 1]))
    assert torch.isinf(found).all()
    assert not Score(math.inf, 1.0).near_tie and not Score(math.nan, math.nan).near_tie
    assert Score(0.5, 0.25).near_tie and not Score(0.51, 0.25).near_tie


@pytest.fixture(scope="module")
def model(llama_checkpoint: Path) -> Transformer:
    return load(llama_checkpoint)


def forced(request: Request, tokens: list[int]) -> Request:
    return Request(request.prompt_token_ids, request.sampling, request.key, False, tuple(tokens))


def scored(model: Transformer, config: EngineConfig, requests: list[Request]) -> list[Score]:
    done = decode(model, requests, config)
    assert all(not c.token_ids and c.finish_reason == "stop" for c in done.values())
    return [score for r in requests if (score := done[r.key].score) is not None]


@pytest.mark.parametrize("law", LAWS, ids=["greedy", "sampled", "all at once"])
def test_what_was_decoded_has_no_deficit_and_what_was_not_has(
    model: Transformer, law: dict[str, Any]
) -> None:
    """Drafted tokens too; passes of 7 prompt tokens; more tokens than logits that are held."""
    params = SamplingParams(max_tokens=90, ignore_eos=True, **law)
    prompts = random_prompts(model.config.vocab_size, (20, 5, 1))
    requests = [Request(p, params, f"row {i}") for i, p in enumerate(prompts)]
    config = engine_config(drafting(2), max_num_seqs=2, prefill_tokens=7)
    done = decode(model, requests, config)
    right = [forced(r, done[r.key].token_ids) for r in requests]
    for score in scored(model, config, right):
        assert score.deficit < 1e-4 and 0 < score.noise < 1e-3
    for at in (0, 40, 89):
        wrong = [list(r.forced) for r in right]
        for tokens in wrong:
            tokens[at] = (tokens[at] + 1) % model.config.vocab_size
        off = scored(model, config, [forced(*both) for both in zip(requests, wrong, strict=True)])
        assert len(off) == 3 and not any(score.near_tie for score in off)


def test_others_run_on_as_they_would(model: Transformer) -> None:
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    prompts = random_prompts(model.config.vocab_size, (9, 4, 6, 3))
    requests = [Request(p, params, f"row {i}") for i, p in enumerate(prompts)]
    # No place beside two that run: forced ones wait for slots, and hold nobody up.
    config = engine_config(max_num_seqs=2, kv_budget_bytes=budget_for(model, 128))
    alone = decode(model, requests, config)
    again = [forced(r, alone[r.key].token_ids) for r in requests]
    engine = Engine(model, config, eos_token_ids=[1])
    done: list[Completion] = list(engine.generate([*again[:2], *requests, *again[2:]]))
    assert len(done) == 8 and not engine.has_work
    assert all(c.score.near_tie for c in done if c.score is not None)
    texts = {c.key: c.token_ids for c in done if c.score is None}
    assert texts == {key: c.token_ids for key, c in alone.items()}
    assert engine.counters.completion_tokens == 4 * 12
    assert engine.counters.num_slots_used == 0


@pytest.mark.parametrize("tokens", [[5] * 4, [-1], [10**6]])
def test_tokens_that_cannot_be_are_refused(model: Transformer, tokens: list[int]) -> None:
    request = forced(Request([5, 6], SamplingParams(max_tokens=3), "row"), tokens)
    done = decode(model, [request], engine_config())["row"]
    assert done.error_code == "bad_parameter" and "forced" in (done.error_message or "")
