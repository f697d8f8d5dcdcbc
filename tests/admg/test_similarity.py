"""ADMG's similarities against hooks on transformers' layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from admg.config import DraftConfig, SamplingParams
from admg.request import Request
from tests.admg.decoding import (
    PLAIN,
    decode,
    drafting,
    engine_config,
    load,
    load_oracle,
    random_prompts,
)

LENGTHS = [1, 2, 50, 7, 33, 90]
KINDS = ["mean", "last", "decay"]
DECAY = 0.8


@torch.inference_mode()
def oracle_cosines(path: Path, prompt: list[int]) -> torch.Tensor:
    """cos(x, x + attention's output) [T, L] from transformers' residual stream, fp64."""
    oracle = load_oracle(path)
    inputs, added = [], []
    hooks = []
    for layer in oracle.model.layers:
        hooks.append(
            layer.input_layernorm.register_forward_pre_hook(
                lambda _, args: inputs.append(args[0][0].double())
            )
        )
        hooks.append(
            layer.self_attn.register_forward_hook(
                lambda _, __, output: added.append(output[0][0].double())
            )
        )
    oracle(torch.tensor([prompt]))
    cosines = [
        torch.nn.functional.cosine_similarity(x, x + a, dim=-1)
        for x, a in zip(inputs, added, strict=True)
    ]
    return torch.stack(cosines, -1)


def expected(cosines: torch.Tensor, kind: str) -> torch.Tensor:
    if kind == "mean":
        return cosines.mean(0)
    if kind == "last":
        return cosines[-1]
    weights = DECAY ** torch.arange(len(cosines)).flip(0).double()  # the last token weighs 1
    return (weights[:, None] * cosines).sum(0) / weights.sum()


def similarities(path: Path, draft: DraftConfig, prefill_tokens: int) -> torch.Tensor:
    model = load(path)
    prompts = random_prompts(model.config.vocab_size, LENGTHS)
    sampling = SamplingParams(max_tokens=3)
    requests = [Request(p, sampling, str(i)) for i, p in enumerate(prompts)]
    config = engine_config(draft, max_num_seqs=4, prefill_tokens=prefill_tokens)
    done = decode(model, requests, config)
    return torch.tensor([done[r.key].stats.attention_similarity for r in requests]).double()


@pytest.mark.parametrize("family", ["llama", "qwen3-ungrouped-biases", "mistral"])
def test_similarities_are_those_of_transformers_residual_stream(checkpoints, family: str) -> None:
    path = checkpoints(family)
    model = load(path)
    prompts = random_prompts(model.config.vocab_size, LENGTHS)
    cosines = [oracle_cosines(path, prompt) for prompt in prompts]
    assert cosines[2].shape == (50, model.config.num_layers)
    for kind in KINDS:
        draft = drafting(1, similarity=kind, similarity_decay=DECAY)
        ours = similarities(path, draft, 1000)
        theirs = torch.stack([expected(c, kind) for c in cosines])
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    # The kinds are told apart by what they measure here.
    one, other = expected(cosines[2], "mean"), expected(cosines[2], "decay")
    assert (one - other).abs().max() > 1e-3 and (one - cosines[2][-1]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_change_nothing(llama_checkpoint: Path, kind: str) -> None:
    draft = drafting(1, similarity=kind, similarity_decay=DECAY)
    whole = similarities(llama_checkpoint, draft, 1000)
    for prefill_tokens in (1, 7, 64):
        chunked = similarities(llama_checkpoint, draft, prefill_tokens)
        torch.testing.assert_close(chunked, whole, atol=3e-6, rtol=0)


def test_decay_1_is_the_mean(llama_checkpoint: Path) -> None:
    mean = similarities(llama_checkpoint, drafting(1), 1000)
    decay = similarities(llama_checkpoint, drafting(1, similarity="decay", similarity_decay=1), 40)
    torch.testing.assert_close(decay, mean, atol=3e-6, rtol=0)


def test_plain_decoding_reports_no_plan(llama_checkpoint: Path) -> None:
    model = load(llama_checkpoint)
    request = Request([5, 6, 7], SamplingParams(max_tokens=4), "a")
    stats = decode(model, [request], engine_config(PLAIN))["a"].stats
    assert stats.dropped_attention_layers == [] and stats.drafter_tokens == {}


def test_layers_are_dropped_by_their_own_prompts_similarity(llama_checkpoint: Path) -> None:
    """One engine, many plans: each sequence drops its own most alike layer."""
    model = load(llama_checkpoint)
    prompts = random_prompts(model.config.vocab_size, [20 + i for i in range(12)], seed=5)
    requests = [Request(p, SamplingParams(max_tokens=6), str(i)) for i, p in enumerate(prompts)]
    draft = drafting(1, keep_first=0, keep_last=0, similarity="last")
    done = decode(model, requests, engine_config(draft, max_num_seqs=12))
    for completion in done.values():
        similarity = completion.stats.attention_similarity
        assert completion.stats.dropped_attention_layers == [similarity.index(max(similarity))]
    assert len({tuple(c.stats.dropped_attention_layers) for c in done.values()}) > 1
