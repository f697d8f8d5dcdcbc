"""The engine's token ids are plain decoding's: fp32, greedy and sampled, whatever runs beside.

Greedy completions are compared with transformers' `generate` at batch 1, all of them with our own
plain decoding at batch 1, which in turn is compared with transformers' own laws. The engine checks
its invariants in every round. Tiny models; the demo model has a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from admg.config import DraftConfig, SamplingParams
from admg.draft_rules import ExitRule, RandomSets, SearchedSets, WindowRule
from admg.engine import Engine
from admg.model import Transformer
from admg.noise import exponential, position_key, stream, token_hash
from admg.request import Completion, Request
from tests.admg.decoding import (
    PLAIN,
    assert_identical,
    budget_for,
    decode,
    drafting,
    engine_config,
    load,
    load_oracle,
    oracle_greedy,
    random_prompts,
    requests_for,
)

FAMILIES = [
    "llama",
    "llama-ungrouped-tied",
    "llama-biases",
    "llama3-rope-sharded",
    "mistral",
    "qwen2",
    "qwen3-ungrouped-biases",
]
LENGTHS = [1, 37, 9, 90, 22, 64, 2]
MAX_TOKENS = [24, 16, 30, 11, 24, 1, 19]
LAWS = {
    "greedy": SamplingParams(),
    "penalised": SamplingParams(repetition_penalty=1.4, min_tokens=8),
    "temperature": SamplingParams(temperature=1.0, seed=3),
    "nucleus": SamplingParams(temperature=0.7, top_p=0.9, seed=5),
    "few": SamplingParams(temperature=1.5, top_k=12, top_p=0.95, min_p=0.02, seed=2**63 - 1),
    "all": SamplingParams(
        temperature=0.9, top_k=40, top_p=0.9, repetition_penalty=1.2, min_tokens=9
    ),
}


@dataclass
class Case:
    """One family: its model, requests over all laws and their ids from plain decoding alone."""

    model: Transformer
    requests: list[Request]
    eos: list[int]
    plain: list[Completion]
    path: Path

    def ids(self, rows: Sequence[int] | None = None) -> list[list[int]]:
        return [self.plain[i].token_ids for i in (rows or range(len(self.plain)))]


def make_case(path: Path) -> Case:
    model = load(path)
    prompts = random_prompts(model.config.vocab_size, LENGTHS) * len(LAWS)
    laws = [replace(law, max_tokens=30) for law in LAWS.values() for _ in LENGTHS]
    # EOS ids that the model does emit, one early and one late.
    free = decode(model, requests_for(prompts, laws)[8:17:8], engine_config())
    eos = sorted({free["8"].token_ids[3], free["16"].token_ids[20]})
    for i, law in enumerate(laws):
        most = MAX_TOKENS[i % len(LENGTHS)]
        laws[i] = replace(law, max_tokens=most, min_tokens=min(law.min_tokens, most))
    requests = requests_for(prompts, laws)
    plain = decode(model, requests, engine_config(), eos_token_ids=eos)
    return Case(model, requests, eos, [plain[r.key] for r in requests], path)


@pytest.fixture(scope="module")
def cases(checkpoints: Callable[[str], Path]) -> Callable[[str], Case]:
    """The case of a family, made once."""
    return cache(lambda name: make_case(checkpoints(name)))


def assert_like_plain(
    case: Case, rows: Sequence[int], draft: DraftConfig, **sizes: Any
) -> list[Completion]:
    """Decode the case's requests at `rows`, in that order: ids and reasons as plainly alone."""
    requests = [case.requests[i] for i in rows]
    config = engine_config(draft, **sizes)
    done = decode(case.model, requests, config, eos_token_ids=case.eos)
    ours = [done[r.key] for r in requests]
    theirs = [case.plain[i] for i in rows]
    ties = assert_identical(
        case.model, requests, [c.token_ids for c in ours], [c.token_ids for c in theirs]
    )
    if not ties:
        assert [c.finish_reason for c in ours] == [c.finish_reason for c in theirs]
    return ours


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_greedy_decoding_is_generate(cases: Callable[[str], Case], family: str) -> None:
    case = cases(family)
    oracle = load_oracle(case.path)
    rows = [i for i, r in enumerate(case.requests) if r.sampling.greedy]
    assert len(rows) == 2 * len(LENGTHS)
    theirs = [oracle_greedy(oracle, case.requests[i], case.eos) for i in rows]
    assert_identical(case.model, [case.requests[i] for i in rows], case.ids(rows), theirs)
    reasons = {case.plain[i].finish_reason for i in rows}
    assert reasons == {"stop", "length"}, "the prompts must cover an early EOS and a full length"


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_plain_sampling_follows_transformers_laws(
    cases: Callable[[str], Case], family: str
) -> None:
    """Every sampled token wins the race of the documented noise over transformers' warped law."""
    case = cases(family)
    oracle = load_oracle(case.path)
    hashes = token_hash(torch.arange(case.model.config.vocab_size))
    for request, completion in zip(case.requests, case.plain, strict=True):
        s = request.sampling
        if s.greedy or s.min_p:
            continue
        warpers = LogitsProcessorList([TemperatureLogitsWarper(s.temperature)])
        if s.repetition_penalty != 1:
            warpers.insert(0, RepetitionPenaltyLogitsProcessor(s.repetition_penalty))
        if s.top_k:
            warpers.append(TopKLogitsWarper(s.top_k))
        if s.top_p < 1:
            warpers.append(TopPLogitsWarper(s.top_p))
        tokens = torch.tensor([[*request.prompt_token_ids, *completion.token_ids]])
        with torch.inference_mode():
            logits = oracle(tokens).logits[0]
        for t, token in enumerate(completion.token_ids):
            at = len(request.prompt_token_ids) + t
            scores = logits[at - 1 : at].clone()
            if t < s.min_tokens:
                scores[:, case.eos] = -torch.inf
            law = warpers(tokens[:, :at], scores)[0].log_softmax(-1).double()
            key = torch.tensor([position_key(stream(s.seed, request.key), t)])
            race = law - exponential(key, hashes)[0].log()
            assert race[token] > race.max() - 1e-4, f"{request.key}: token {t} loses the race"


CONFIGURATIONS: dict[str, tuple[DraftConfig, dict[str, Any]]] = {
    "nothing-dropped": (drafting(0), {"max_num_seqs": 4}),
    "one": (drafting(1), {"max_num_seqs": 8}),
    "two-chunks-of-7": (drafting(2), {"max_num_seqs": 4, "prefill_tokens": 7}),
    "three-chunks-of-64": (drafting(3), {"max_num_seqs": 8, "prefill_tokens": 64}),
    "all-chunks-of-1": (
        drafting(99, keep_first=0, keep_last=0),
        {"max_num_seqs": 8, "prefill_tokens": 1},
    ),
    "threshold-one-token": (drafting(threshold=0.6, draft_tokens=1), {"max_num_seqs": 8}),
    "quantile-exit": (
        drafting(quantile=0.4, exit_threshold=0.4, draft_tokens=8, similarity="last"),
        {"max_num_seqs": 4},
    ),
    "long-drafts": (drafting(1, draft_tokens=16, similarity="decay"), {"max_num_seqs": 8}),
    "holes-left-empty": (drafting(2, hole_filling=False), {"max_num_seqs": 4}),
    "plan-remade": (drafting(2, remake_after=5), {"max_num_seqs": 4, "prefill_tokens": 40}),
    "plan-remade-again": (
        drafting(2, remake_after=2, remake_every=3, windows=WindowRule(share=0.4, window=8)),
        {"max_num_seqs": 4},
    ),
    "lookup-tail": (drafting(1, draft_tokens=2, lookup_tail=6), {"max_num_seqs": 4}),
    "draft-and-verify": (
        drafting(
            attention=(1, 2),
            mlps=(3,),
            hole_filling=False,
            draft_tokens=8,
            exit_threshold=0.5,
            exit=ExitRule(step=0.2, carry=True),
        ),
        {"max_num_seqs": 4},
    ),
    "random-sets": (drafting(0, sets=RandomSets(2, 1)), {"max_num_seqs": 8}),
    "searched-sets": (drafting(0, sets=SearchedSets(2, 1, trial_tokens=3)), {"max_num_seqs": 4}),
    "plain": (PLAIN, {"max_num_seqs": 8, "prefill_tokens": 64}),
}


@pytest.mark.parametrize(
    ("family", "name"),
    [("llama", name) for name in CONFIGURATIONS]
    + [("qwen3-ungrouped-biases", name) for name in ("all-chunks-of-1", "quantile-exit", "one")],
)
def test_every_configuration_decodes_like_plain_alone(
    cases: Callable[[str], Case], family: str, name: str
) -> None:
    """All laws mixed in one batch, more sequences than places, in an order that mixes lengths."""
    case = cases(family)
    draft, sizes = CONFIGURATIONS[name]
    rows = [(i * 5) % len(case.requests) for i in range(len(case.requests))]
    assert len(set(rows)) == len(case.requests)
    ours = assert_like_plain(case, rows, draft, **sizes)
    drafted = sum(c.stats.num_draft_tokens for c in ours)
    accepted = sum(c.stats.num_accepted_draft_tokens for c in ours)
    if name == "plain":
        assert drafted == 0
    elif name == "nothing-dropped":  # the draft is the target, and the noise is shared
        assert accepted > 0.95 * drafted > 0
    else:
        assert 0 < accepted < drafted, "nothing was tested unless drafts were kept and refused"
    if draft.lookup_tail:
        assert max(len(c.stats.acceptance_histogram) for c in ours) - 1 > draft.draft_tokens


@pytest.mark.parametrize("family", FAMILIES[1:])
def test_every_family_drafts_like_plain_alone(cases: Callable[[str], Case], family: str) -> None:
    case = cases(family)
    rows = list(range(len(case.requests)))[::-1]
    ours = assert_like_plain(case, rows, drafting(1), max_num_seqs=8, prefill_tokens=50)
    dropped = {tuple(c.stats.dropped_attention_layers) for c in ours}
    assert all(len(d) == 1 for d in dropped)


@pytest.mark.parametrize("draft", [drafting(2), drafting(3, exit_threshold=0.6, draft_tokens=6)])
def test_drafting_alone_is_plain_decoding(cases: Callable[[str], Case], draft: DraftConfig) -> None:
    case = cases("llama")
    assert_like_plain(case, range(0, len(case.requests), 4), draft, max_num_seqs=1)


@pytest.mark.parametrize("slots", [128, 160, 224])
def test_small_budgets_make_sequences_wait(cases: Callable[[str], Case], slots: int) -> None:
    """The budget holds the longest sequence and little else, so places stay empty."""
    case = cases("llama")
    rows = range(len(case.requests))
    sizes = {"max_num_seqs": 8, "kv_budget_bytes": budget_for(case.model, slots)}
    assert_like_plain(case, rows, drafting(2), **sizes)


def test_places_and_waiting_are_bounded_by_the_configuration(
    cases: Callable[[str], Case],
) -> None:
    case = cases("llama")
    engine = Engine(case.model, engine_config(drafting(1), max_num_seqs=4), eos_token_ids=[])
    for request in case.requests[:9]:
        engine.submit(request)
    assert engine.counters.num_waiting == 9
    seen, done = set(), 0
    while engine.has_work:
        done += len(engine.step())
        counters = engine.counters
        assert counters.num_running <= 4
        assert counters.num_running + counters.num_waiting + done == 9
        seen.add(counters.num_running)
    assert max(seen) == 4 and done == 9
