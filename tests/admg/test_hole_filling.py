"""Running means of dropped layers' outputs: by hand, against passes from scratch, and in drafts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from admg import learning
from admg.config import DraftConfig, SamplingParams
from admg.drafters.draft import Draft
from admg.drafters.self_draft import SelfDrafter
from admg.engine import Engine
from admg.hole_filling import FillingObserver, OutputsObserver, RunningMean, fills
from admg.kv_arena import KVArena
from admg.model import Transformer
from admg.noise import stream
from admg.plan import DraftPlan
from admg.prefill import prefill_pass
from admg.request import Request
from admg.sampling import Sampler
from admg.scheduler import Chunk
from admg.sequence import Sequence
from tests.admg.decoding import (
    assert_identical,
    decode,
    drafting,
    engine_config,
    load,
    load_oracle,
    outputs_and_cosines,
    random_prompts,
    requests_for,
)

DECAY = 0.5
LENGTHS = [12, 40, 2, 77, 1, 25, 60]
LAWS = [
    SamplingParams(max_tokens=14),
    SamplingParams(max_tokens=20, temperature=1.0, seed=8),
    SamplingParams(max_tokens=9, temperature=0.7, top_p=0.9, seed=1),
]


@pytest.fixture(scope="module")
def model(llama_checkpoint: Path) -> Transformer:
    return load(llama_checkpoint)


@pytest.fixture(scope="module")
def requests(model: Transformer) -> list[Request]:
    prompts = random_prompts(model.config.vocab_size, LENGTHS)
    return requests_for(prompts, [LAWS[i % len(LAWS)] for i in range(len(prompts))])


def column(*values: float) -> Tensor:
    """Outputs [T, 1] of a model of one dimension."""
    return torch.tensor(values, dtype=torch.float32)[:, None]


def observed(values: Tensor, firsts: list[int], counts: list[int]) -> FillingObserver:
    observer = FillingObserver(firsts, counts, 1, values.shape[1], DECAY, "cpu")
    observer.see(0, torch.full_like(values, math.nan), values)
    return observer


def test_a_prompt_by_hand() -> None:
    """Its first token does not count; of the others each weighs half of the next."""
    mean = observed(column(100, 2, 4), [0], [3]).onto(None, 0)
    assert mean.sums.tolist() == [[0.5 * 2 + 4]] and mean.weight == 1.5
    assert mean.mean.item() == pytest.approx(5 / 1.5)


def test_chunks_by_hand() -> None:
    """Two sequences in one pass, then the rest of the first: as if it had come in one."""
    observer = observed(column(100, 2, 4, 8, 16), [0, 3], [3, 2])
    first = observer.onto(None, 0)
    second = observer.onto(RunningMean(torch.tensor([[10.0]]), 1.75), 1)
    assert second.sums.tolist() == [[10 / 4 + 8 / 2 + 16]] and second.weight == 1.75 / 4 + 1.5
    rest = observed(column(6, 1), [3], [2]).onto(first, 0)
    whole = observed(column(100, 2, 4, 6, 1), [0], [5]).onto(None, 0)
    assert torch.equal(rest.sums, whole.sums) and rest.weight == whole.weight


def test_a_prompt_of_one_token_fills_nothing() -> None:
    mean = observed(column(100), [0], [1]).onto(None, 0)
    assert mean.weight == 0 and mean.mean.tolist() == [[0]]
    after = observed(column(7), [1], [1]).onto(mean, 0)
    assert after.weight == 1 and after.mean.tolist() == [[7]]


@pytest.mark.parametrize("decay", [0.9, 1.0])
def test_old_tokens_leave_out_nothing_that_fp32_could_see(decay: float) -> None:
    values = torch.randn(700, 3, generator=torch.Generator().manual_seed(1)) + 5
    observer = FillingObserver([0], [700], 1, 3, decay, "cpu")
    observer.see(0, values, values)
    mean = observer.onto(None, 0)
    weights = decay ** torch.arange(698, -1, -1, dtype=torch.float64)
    sums = (weights[:, None] * values[1:].double()).sum(0)
    torch.testing.assert_close(mean.sums[0].double(), sums, rtol=1e-5, atol=0)
    assert mean.weight == pytest.approx(float(weights.sum()))


def test_verification_by_hand() -> None:
    """Accepted tokens alone count, and nobody else's numbers do, finite or not."""
    observer = OutputsObserver()
    observer.see(0, column(0), column(2, 4, math.nan, math.inf, 5, math.nan))
    observer.see(1, column(0), column(1, 1, 1, 1, 3, 1))
    before = RunningMean(torch.tensor([[8.0], [0.0]]), 2.0)
    spans = [(0, 2), (3, 0), (4, 1), (5, 1)]
    after = observer.onto([before, before, before, None], spans, DECAY)
    assert after[0] is not None and after[2] is not None
    assert after[0].sums.tolist() == [[8 / 4 + 2 / 2 + 4], [1.5]] and after[0].weight == 2
    assert after[1] is before, "an output that was not finite teaches nothing"
    assert after[2].sums.tolist() == [[8 / 2 + 5], [3]] and after[2].weight == 2
    assert after[3] is None


def test_fills_are_laid_out_by_layer() -> None:
    mean = RunningMean(torch.tensor([[2.0], [6.0]]), 2.0)
    empty = RunningMean.empty(2, 1, "cpu")
    filled = fills([mean, None, empty], torch.bfloat16)
    assert filled is not None and filled.dtype == torch.bfloat16
    assert filled[..., 0].tolist() == [[1, 0, 0], [3, 0, 0]]
    assert fills([None, None], torch.float32) is None


def expected_filling(model: Transformer, tokens: list[int], decay: float) -> tuple[Tensor, float]:
    """num and den as the rule has them, token by token from a pass from scratch, fp64."""
    outputs, _ = outputs_and_cosines(model, tokens)  # [L, T, D]
    num, den = torch.zeros_like(outputs[:, 0]), 0.0
    for t in range(1, len(tokens)):
        num, den = decay * num + outputs[:, t], decay * den + 1
    return num, den


def check_fillings(engine: Engine, model: Transformer, decay: float) -> int:
    """Every running sequence's sums are those of its committed tokens; how many were compared."""
    running = engine._scheduler.decoding()
    for s in running:
        assert s.learned.filling is not None
        num, den = expected_filling(model, s.tokens[: s.computed], decay)
        assert s.learned.filling.weight == pytest.approx(den)
        torch.testing.assert_close(s.learned.filling.sums.double(), num, atol=2e-4, rtol=1e-4)
    return len(running)


def run_checked(
    model: Transformer, requests: list[Request], draft: DraftConfig, **sizes: Any
) -> Engine:
    engine = Engine(model, engine_config(draft, **sizes), eos_token_ids=[])
    for request in requests:
        engine.submit(request)
    compared = 0
    while engine.has_work:
        engine.step()
        compared += check_fillings(engine, model, draft.hole_filling_decay)
    assert compared > 10
    return engine


@pytest.mark.parametrize(
    ("draft", "sizes"),
    [
        (drafting(2), {"max_num_seqs": 1}),
        (drafting(3, hole_filling_decay=0.7), {"max_num_seqs": 4, "prefill_tokens": 7}),
        (drafting(2, verification="token"), {"max_num_seqs": 3}),
        (drafting(99, draft_tokens=6, remake_after=3), {"max_num_seqs": 4, "prefill_tokens": 33}),
    ],
    ids=["alone", "chunks", "rejection", "remade"],
)
def test_a_filling_is_that_of_a_pass_from_scratch(
    model: Transformer, requests: list[Request], draft: DraftConfig, sizes: dict[str, Any]
) -> None:
    """After every round, through refill, chunks, refused drafts and remade plans."""
    engine = run_checked(model, requests, draft, **sizes)
    assert 0 < engine.counters.num_accepted_draft_tokens < engine.counters.num_draft_tokens


@pytest.mark.parametrize("prefill_tokens", [1024, 32])
def test_a_shared_prefix_brings_its_part_of_the_filling(
    model: Transformer, prefill_tokens: int
) -> None:
    shared = random_prompts(model.config.vocab_size, [70], seed=1)[0]
    tails = random_prompts(model.config.vocab_size, [5, 1, 30], seed=2, special=None)
    prompts = [[*shared, 2 + i, *tail] for i, tail in enumerate(tails)]
    sizes = {"max_num_seqs": 3, "prefill_tokens": prefill_tokens, "kv_budget_bytes": 2**22}
    engine = run_checked(model, requests_for(prompts, LAWS), drafting(2), **sizes)
    assert engine.counters.num_cached_tokens == 70 * 3


def refused_drafts_count(monkeypatch: pytest.MonkeyPatch) -> None:
    teach = learning.VerifiedObservers.teach
    monkeypatch.setattr(
        learning.VerifiedObservers,
        "teach",
        lambda self, first, verified: teach(self, first, [n + 1 for n in verified]),
    )


def the_sink_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    init = FillingObserver.__init__
    monkeypatch.setattr(
        FillingObserver,
        "__init__",
        lambda self, firsts, *more: init(self, [f or 1 for f in firsts], *more),
    )


def plain_rounds_teach_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    teach = learning.VerifiedObservers.teach
    monkeypatch.setattr(
        learning.VerifiedObservers,
        "teach",
        lambda self, first, verified: teach(self, first, [n if n > 1 else 0 for n in verified]),
    )


@pytest.mark.parametrize(
    "mutate", [refused_drafts_count, the_sink_counts, plain_rounds_teach_nothing]
)
def test_the_check_above_notices_other_rules(
    model: Transformer,
    requests: list[Request],
    mutate: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        run_checked(model, requests, drafting(3), max_num_seqs=3)


class RecordingSampler(Sampler):
    """Keeps the logits that tokens are drawn from."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__(vocab_size)
        self.seen: list[Tensor] = []

    def draw(self, logits: Tensor, rows: Any) -> Tensor:
        """As the sampler does."""
        self.seen.append(logits)
        return super().draw(logits, rows)


@torch.inference_mode()
def oracle_draft_logits(
    path: Path, tokens: list[int], drafted: list[int], dropped: tuple[int, ...], fill: bool
) -> list[Tensor]:
    """Logits of every draft position from transformers' layers, the holes filled by hand.

    The draft's inputs are the last committed token and all but the last drafted one; at their
    positions the dropped layers' attention output is replaced by num/den of rule C.
    """
    oracle = load_oracle(path)
    layers = oracle.model.layers
    added: list[Tensor] = []
    hooks = [
        layer.self_attn.register_forward_hook(lambda _, __, out: added.append(out[0][0].clone()))
        for layer in layers
    ]
    oracle(torch.tensor([tokens[:-1]]))
    for hook in hooks:
        hook.remove()
    first = len(tokens) - 1  # position of the draft's first input
    for index in dropped:
        hole = torch.zeros_like(added[index][0])
        if fill:
            weights = 0.9 ** torch.arange(first - 2, -1, -1).double()
            values = added[index][1:].double()
            hole = ((weights[:, None] * values).sum(0) / weights.sum()).float()

        def replaced(_: object, __: object, out: Any, hole: Tensor = hole) -> Any:
            output = out[0].clone()
            output[0, first:] = hole
            return (output, *out[1:])

        layers[index].self_attn.register_forward_hook(replaced)
    logits = oracle(torch.tensor([tokens + drafted[:-1]])).logits[0]
    return list(logits[first:])


@pytest.mark.parametrize("family", ["llama", "qwen3-ungrouped-biases"])
def test_draft_logits_are_transformers_with_the_holes_filled(
    checkpoints: Callable[[str], Path], family: str
) -> None:
    """Three sequences with plans of their own in one batch, four draft tokens each."""
    path = checkpoints(family)
    model = load(path)
    arena = KVArena(model.config, 512, torch.float32, "cpu")
    sampler = RecordingSampler(model.config.vocab_size)
    sequences = []
    for i, prompt in enumerate(random_prompts(model.config.vocab_size, [30, 9, 50])):
        extent = arena.allocate(len(prompt) + 8)
        assert extent is not None
        request = Request(prompt, SamplingParams(max_tokens=8), str(i))
        sequences.append(Sequence(i, request, stream(0, str(i)), (), list(prompt), extent))
    chunks = [Chunk(s, len(s.tokens)) for s in sequences]
    ready = prefill_pass(model, arena, sampler, chunks, drafting(2))
    plans = [(1, 3), (3,), (0, 1, 2, 3)]
    for (s, token), dropped in zip(ready, plans, strict=True):
        assert token is not None
        s.tokens.append(token)
        s.plan = DraftPlan(dropped, 4)
    sampler.seen.clear()
    draft = Draft.empty(3)
    SelfDrafter(model, arena, sampler, False).draft(sequences, [4, 4, 3], draft)
    assert [len(logits) for logits in sampler.seen] == [3, 3, 3, 2]
    for i, (s, dropped) in enumerate(zip(sequences, plans, strict=True)):
        args = (path, s.tokens, draft.tokens[i], dropped)
        filled, bare = oracle_draft_logits(*args, True), oracle_draft_logits(*args, False)
        for step, logits in enumerate(sampler.seen[: len(filled)]):
            torch.testing.assert_close(logits[i], filled[step], atol=1e-3, rtol=1e-3)
            assert (logits[i] - bare[step]).abs().max() > 0.1


@pytest.mark.parametrize("places", [1, 4])
@pytest.mark.parametrize("count", [0, 1, 3, 5])
@pytest.mark.parametrize("fields", [{}, {"remake_after": 4}, {"hole_filling": False}])
def test_completions_are_those_of_plain_decoding(
    model: Transformer, requests: list[Request], fields: dict[str, Any], count: int, places: int
) -> None:
    reference = decode(model, requests, engine_config())
    draft = drafting(count, keep_first=0, keep_last=0, **fields)
    for prefill_tokens in (1024, 7):
        config = engine_config(draft, max_num_seqs=places, prefill_tokens=prefill_tokens)
        done = decode(model, requests, config)
        ids = [[d[r.key].token_ids for r in requests] for d in (done, reference)]
        assert_identical(model, requests, *ids)


@pytest.mark.parametrize("verification", ["shared", "token"])
def test_a_filling_that_is_not_finite_harms_nobody(
    model: Transformer, requests: list[Request], verification: str
) -> None:
    """Not even its own sequence, whose drafts are refused then."""
    greedy = [replace(r, sampling=LAWS[0]) for r in requests]
    reference = decode(model, greedy, engine_config())
    config = engine_config(drafting(2, verification=verification), max_num_seqs=3)
    engine = Engine(model, config, eos_token_ids=[])
    for request in greedy:
        engine.submit(request)
    done = {}
    while engine.has_work:
        done |= {c.key: c for c in engine.step()}
        for s in engine._scheduler.decoding():
            if s.request.key in ("1", "3"):
                assert s.learned.filling is not None
                sums = torch.full_like(s.learned.filling.sums, math.nan)
                s.learned = replace(s.learned, filling=RunningMean(sums, 1.0))
    ids = [[d[r.key].token_ids for r in greedy] for d in (done, reference)]
    assert_identical(model, greedy, *ids)
    assert done["3"].stats.num_draft_tokens and not done["3"].stats.num_accepted_draft_tokens
    assert sum(c.stats.num_accepted_draft_tokens for c in done.values())


def test_without_hole_filling_nothing_is_kept(model: Transformer, requests: list[Request]) -> None:
    for draft in (drafting(2, hole_filling=False), DraftConfig(drafter="none")):
        engine = Engine(model, engine_config(draft, max_num_seqs=3), eos_token_ids=[])
        for request in requests[:3]:
            engine.submit(request)
        engine.step()
        assert all(s.learned.filling is None for s in engine._scheduler.running)
        assert all(s.learned.similarity_sums is None for s in engine._scheduler.running)
