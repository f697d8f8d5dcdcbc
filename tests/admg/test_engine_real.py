"""A real model on real prompts: token ids are plain decoding's and transformers', in fp32 (T5).

Chat prompts of the demo model: the pad and EOS id stands inside every one of them. `make test`
runs a small set of configurations that covers every batch size, drop count and law; the whole
product, against transformers' `generate` for every prompt, is marked slow.

`generate` takes one pass a token. What is asked of it in the short run for most prompts is asked
in one pass a sequence instead: each of our tokens must be the most likely one after those before
it, which by induction is what greedy `generate` gives.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers

from admg.config import DraftConfig, SamplingParams
from admg.model import Transformer
from admg.request import Completion, Request
from tests.admg.decoding import (
    PLAIN,
    assert_identical,
    decode,
    drafting,
    engine_config,
    load,
    load_oracle,
    oracle_greedy,
)

logger = logging.getLogger(__name__)

NUM_PROMPTS = 32
MAX_TOKENS = 64
TIE = 1e-3  # fp32 logits of this model reach 40; two computations of one differ by up to 2e-4
LAWS = {
    "greedy": SamplingParams(max_tokens=MAX_TOKENS),
    "temperature": SamplingParams(max_tokens=MAX_TOKENS, temperature=1.0, seed=1),
    "nucleus": SamplingParams(max_tokens=MAX_TOKENS, temperature=0.7, top_p=0.9, seed=2),
}


@pytest.fixture(scope="module")
def model(demo_model_path: Path) -> Transformer:
    return load(demo_model_path)


@pytest.fixture(scope="module")
def oracle(demo_model_path: Path) -> transformers.PreTrainedModel:
    return load_oracle(demo_model_path)


@pytest.fixture(scope="module")
def eos(oracle: transformers.PreTrainedModel) -> list[int]:
    ids = oracle.config.eos_token_id
    return list(ids) if isinstance(ids, list) else [ids]


@pytest.fixture(scope="module")
def prompts(demo_model_path: Path, spec_bench_prompts: list[str], eos: list[int]):
    """Chat prompts of 60 to 200 tokens from all over the questions, summarisation among them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo_model_path)
    stride = len(spec_bench_prompts) // NUM_PROMPTS
    prompts = []
    for i, text in enumerate(spec_bench_prompts[: NUM_PROMPTS * stride : stride]):
        cut = tokenizer.decode(tokenizer(text)["input_ids"][: 30 + (i * 53) % 140])
        chat = [{"role": "user", "content": cut}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert set(eos) & set(ids) and len(ids) < 230
        prompts.append(list(ids))
    assert len(prompts) == NUM_PROMPTS and len({len(p) for p in prompts}) > 16
    return prompts


@pytest.fixture(scope="module")
def plain(model: Transformer, prompts: list[list[int]], eos: list[int]):
    """Our own plain decoding at batch 1 of one request; done once for each."""

    @cache
    def decoded(row: int, law: str, max_tokens: int) -> Completion:
        request = request_for(prompts, row, law, max_tokens)
        config = engine_config(PLAIN, max_model_len=512)
        return decode(model, [request], config, eos_token_ids=eos)[str(row)]

    return decoded


def request_for(prompts: list[list[int]], row: int, law: str, max_tokens: int) -> Request:
    return Request(prompts[row], replace(LAWS[law], max_tokens=max_tokens), str(row))


def drafted(
    model: Transformer, requests: list[Request], eos: list[int], batch: int, count: int
) -> list[list[int]]:
    """Ids from self-drafts without `count` attention layers."""
    config = engine_config(drafting(count), max_num_seqs=batch, max_model_len=512)
    done = decode(model, requests, config, eos_token_ids=eos)
    stats = [done[r.key].stats for r in requests]
    assert all(len(s.dropped_attention_layers) == count for s in stats)
    accepted = sum(s.num_accepted_draft_tokens for s in stats)
    assert 0 < accepted < sum(s.num_draft_tokens for s in stats)
    return [done[r.key].token_ids for r in requests]


@torch.inference_mode()
def assert_greedy(
    oracle: transformers.PreTrainedModel, request: Request, ids: list[int], eos: list[int]
) -> bool:
    """Every token is transformers' most likely one after those before it; whether all clearly."""
    start = len(request.prompt_token_ids) - 1
    logits = oracle(torch.tensor([[*request.prompt_token_ids, *ids[:-1]]])).logits[0, start:]
    gaps = logits.amax(-1) - logits.gather(-1, torch.tensor(ids)[:, None])[:, 0]
    for t in gaps.nonzero()[:, 0].tolist():
        logger.warning("sequence %s, token %d: near-tie of %.2g", request.key, t, gaps[t])
    assert gaps.max() < TIE, f"{request.key}: token {gaps.argmax()} is not the most likely one"
    assert not set(ids[:-1]) & set(eos)
    assert len(ids) == request.sampling.max_tokens or ids[-1] in eos
    return not gaps.any()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_greedy_over_every_so_many_of_32_prompts(model, oracle, prompts, eos, every: int) -> None:
    rows = range(0, NUM_PROMPTS, every)
    requests = [request_for(prompts, row, "greedy", MAX_TOKENS) for row in rows]
    ids = drafted(model, requests, eos, batch=8, count=8)
    clear = [assert_greedy(oracle, r, own, eos) for r, own in zip(requests, ids, strict=True)]
    assert sum(clear) >= len(rows) - 2
    # The induction itself, on the shortest prompts: the very ids of `generate`.
    shortest = sorted(range(len(rows)), key=lambda i: len(prompts[rows[i]]))[:2]
    theirs = [oracle_greedy(oracle, requests[i], eos) for i in shortest]
    some = [requests[i] for i in shortest]
    assert_identical(model, some, [ids[i] for i in shortest], theirs, tie=TIE)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("batch", "count", "law", "rows"),
    [
        (1, 4, "nucleus", range(0, 32, 16)),
        (4, 12, "temperature", range(3, 32, 11)),
        pytest.param(8, 4, "temperature", range(28, -1, -4), marks=pytest.mark.slow),
        pytest.param(4, 8, "nucleus", range(2, 32, 6), marks=pytest.mark.slow),
    ],
)
def test_sampling_is_plain_sampling(
    model, prompts, eos, plain, batch: int, count: int, law: str, rows: range
) -> None:
    requests = [request_for(prompts, row, law, 16) for row in rows]
    ids = drafted(model, requests, eos, batch, count)
    theirs = [plain(row, law, 16).token_ids for row in rows]
    assert_identical(model, requests, ids, theirs, tie=TIE)


@pytest.fixture(scope="module")
def expected(model, oracle, prompts, eos, plain):
    """Every prompt's 64 tokens: transformers' `generate`, or our plain decoding, at batch 1."""

    @cache
    def ids(law: str) -> list[list[int]]:
        if law == "greedy":
            requests = [request_for(prompts, row, law, MAX_TOKENS) for row in range(NUM_PROMPTS)]
            return [oracle_greedy(oracle, request, eos) for request in requests]
        return [plain(row, law, MAX_TOKENS).token_ids for row in range(NUM_PROMPTS)]

    return ids


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [4, 8, 12])
@pytest.mark.parametrize("batch", [1, 4, 8])
@pytest.mark.parametrize("law", LAWS)
def test_the_whole_product(model, prompts, eos, expected, law: str, batch: int, count: int) -> None:
    requests = [request_for(prompts, row, law, MAX_TOKENS) for row in range(NUM_PROMPTS)]
    ids = drafted(model, requests, eos, batch, count)
    assert_identical(model, requests, ids, expected(law), tie=TIE)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("batch", [1, 4, 8])
@pytest.mark.parametrize("law", LAWS)
def test_plain_decoding_of_every_batch_size(model, prompts, eos, expected, law, batch) -> None:
    requests = [request_for(prompts, row, law, MAX_TOKENS) for row in range(NUM_PROMPTS)]
    config = engine_config(PLAIN, max_num_seqs=batch, max_model_len=512)
    done = decode(model, requests, config, eos_token_ids=eos)
    assert_identical(
        model, requests, [done[r.key].token_ids for r in requests], expected(law), tie=TIE
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("drafter", ["ngram", "auto"])
@pytest.mark.parametrize("batch", [1, 4, 8])
@pytest.mark.parametrize("law", LAWS)
def test_lookup_and_the_controller(model, prompts, eos, expected, law, batch, drafter) -> None:
    requests = [request_for(prompts, row, law, MAX_TOKENS) for row in range(NUM_PROMPTS)]
    draft = DraftConfig(drafter=drafter)
    config = engine_config(draft, max_num_seqs=batch, max_model_len=512)
    done = decode(model, requests, config, eos_token_ids=eos)
    assert sum(c.stats.num_accepted_draft_tokens for c in done.values()) > 0
    assert_identical(
        model, requests, [done[r.key].token_ids for r in requests], expected(law), tie=TIE
    )
