"""Dropped MLPs and fixed sets of layers: against a model whose sub-layers give nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from admg.batch import RaggedBatch
from admg.checkpoint import Weights
from admg.config import DraftConfig, SamplingParams
from admg.draft_rules import DropRule
from admg.drafters.self_draft import members_of
from admg.engine import Engine
from admg.kv_arena import KVArena
from admg.llm import longest_sequence
from admg.model import Transformer
from admg.plan import DraftPlan, choose_dropped
from tests.admg.decoding import (
    decode,
    drafting,
    engine_config,
    load,
    load_changed,
    random_prompts,
    requests_for,
)

ATTENTION, MLPS = (1, 3), (2, 3)


@pytest.fixture(scope="module")
def model(llama_checkpoint: Path) -> Transformer:
    return load(llama_checkpoint)


def without(weights: Weights) -> None:
    """What the dropped sub-layers would add is nothing."""
    for layer in ATTENTION:
        weights.layers[layer].o.zero_()
    for layer in MLPS:
        weights.layers[layer].down.zero_()


def test_each_sequence_skips_its_own_sub_layers(model: Transformer, llama_checkpoint: Path) -> None:
    changed = load_changed(llama_checkpoint, without)
    prompts = random_prompts(model.config.vocab_size, [9, 5, 12])
    arenas = [KVArena(model.config, 512, torch.float32, "cpu") for _ in range(3)]
    parts = [[(p, 0, arena.allocate(64)) for p in prompts] for arena in arenas]
    batches = [RaggedBatch.build(p) for p in parts]
    plans = [DraftPlan(ATTENTION, 4, MLPS), None, DraftPlan(ATTENTION, 4, MLPS)]
    members = members_of(batches[0], plans, model.config.num_layers)
    mixed = model.forward(batches[0], arenas[0], members=members)
    whole = model.forward(batches[1], arenas[1])
    reference = changed.forward(batches[2], arenas[2])
    spans = [slice(s.first, s.first + s.count) for s in batches[0].segments]
    for span, expected in zip(spans, (reference, whole, reference), strict=True):
        torch.testing.assert_close(mixed[span], expected[span], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(reference, whole, atol=1e-2)


def test_a_fixed_set_is_every_sequences_plan_and_the_text_stays(model: Transformer) -> None:
    laws = [SamplingParams(max_tokens=12), SamplingParams(max_tokens=12, temperature=1.0, seed=3)]
    prompts = random_prompts(model.config.vocab_size, [12, 40, 2, 77])
    requests = requests_for(prompts, [laws[i % 2] for i in range(len(prompts))])
    plain = decode(model, requests, engine_config(max_num_seqs=3))
    draft = drafting(attention=(3, 1), mlps=MLPS)
    done = decode(model, requests, engine_config(draft, max_num_seqs=3))
    assert {k: c.token_ids for k, c in done.items()} == {k: c.token_ids for k, c in plain.items()}
    assert all(c.stats.dropped_attention_layers == list(ATTENTION) for c in done.values())
    judged = sum(c.stats.num_draft_tokens for c in done.values())
    assert 0 < sum(c.stats.num_accepted_draft_tokens for c in done.values()) < judged


def test_named_layers_are_taken_as_they_are() -> None:
    rule = DropRule(attention=(4, 0), keep_first=1, keep_last=1)
    assert choose_dropped([0.1] * 5, rule) == (0, 4)
    plan = DraftPlan.of([0.1] * 5, DraftConfig(drop=DropRule(count=0, mlps=(3, 1))))
    assert plan == DraftPlan((), 4, (1, 3))


def test_layers_that_do_not_exist_are_refused(model: Transformer, llama_checkpoint: Path) -> None:
    for fields, name in (({"attention": (1, 5)}, "drop_attention"), ({"mlps": (7,)}, "drop_mlps")):
        level = {} if "attention" in fields else {"count": 0}
        config = engine_config(drafting(**(level | fields)))
        with pytest.raises(ValueError, match=f"{name} has layer [57]: .* 0 to 4"):
            longest_sequence(llama_checkpoint, config)
        with pytest.raises(ValueError, match=name):
            Engine(model, config, eos_token_ids=[])
    with pytest.raises(
        ValueError, match=r"attention is \[1, 1\]: it must be layers from 0 on, each"
    ):
        DropRule(attention=(1, 1))
    with pytest.raises(ValueError, match=r"mlps is \[-1\]: it must be layers from 0 on, each once"):
        DropRule(count=0, mlps=(-1,))
    with pytest.raises(ValueError, match="exactly one of threshold, quantile, count, attention"):
        DropRule(count=0, attention=(1,))
