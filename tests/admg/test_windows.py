"""Limited KV heads: against dense attention with a mask for each head; invisible in the text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from admg.attention_units import UnitReader
from admg.batch import RaggedBatch
from admg.config import DraftConfig, SamplingParams
from admg.draft_rules import DropRule, WindowRule
from admg.drafters.self_draft import members_of
from admg.engine import Engine
from admg.kv_arena import Extent, KVArena
from admg.learning import SAMPLES, sampled
from admg.model import Transformer
from admg.plan import DraftPlan, choose_windowed
from admg.windows import SINKS, LimitedObserver, Near
from tests.admg.decoding import decode, drafting, engine_config, load, random_prompts, requests_for

WINDOW = 8
LENGTHS = [70, 3, 13, 12, 131, 40]
Limits = Mapping[int, tuple[int, ...]]  # layer -> KV heads


@pytest.fixture(scope="module")
def model(llama_checkpoint: Path) -> Transformer:
    return load(llama_checkpoint)


def visible(position: int, limited: bool) -> Tensor:
    """[position + 1] bool, by the definition."""
    keys = torch.arange(position + 1)
    return (keys < SINKS) | (keys > position - WINDOW) | torch.tensor(not limited)


class Dense:
    """Attention in fp64 with a mask of its own for each (sequence, layer, KV head)."""

    def __init__(self, limits: Mapping[Extent, Limits]) -> None:
        self.limits = limits

    def __call__(self, q: Tensor, layer: int, batch: RaggedBatch, arena: KVArena) -> Tensor:
        out = torch.empty_like(q)
        kv_heads, d = arena.num_kv_heads, q.shape[-1]
        group = q.shape[1] // kv_heads
        for s in batch.segments:
            keys, values = arena.units(layer, s.extent, 1)
            limited = self.limits.get(s.extent, {}).get(layer, ())
            for j in range(s.count):
                position = s.start + j
                for h in range(q.shape[1]):
                    seen = visible(position, h // group in limited)
                    k = keys[h // group, : position + 1].double()
                    scores = k @ q[s.first + j, h].double() / math.sqrt(d)
                    weights = scores.masked_fill(~seen, -torch.inf).softmax(0)
                    mixed = weights @ values[h // group, : position + 1].double()
                    out[s.first + j, h] = mixed.to(q.dtype)
        return out


def prefilled(model: Transformer) -> tuple[KVArena, list[Extent], list[list[int]]]:
    arena = KVArena(model.config, 2048, torch.float32, "cpu")
    prompts = random_prompts(model.config.vocab_size, LENGTHS)
    extents = [arena.allocate(len(p) + 8) for p in prompts]
    parts = [(p, 0, e) for p, e in zip(prompts, extents, strict=True) if e is not None]
    model.forward(RaggedBatch.build(parts), arena)
    return arena, [e for e in extents if e is not None], prompts


def test_a_draft_pass_reads_what_each_unit_may(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers, kv_heads = model.config.num_layers, model.config.num_kv_heads
    arena, extents, prompts = prefilled(model)
    generator = torch.Generator().manual_seed(5)
    limits: dict[Extent, dict[int, tuple[int, ...]]] = {}
    plans: list[DraftPlan | None] = []
    for i, extent in enumerate(extents):
        sets = torch.rand(layers, kv_heads, generator=generator) < (0.5, 1.0, 0.2)[i % 3]
        windowed = tuple(tuple(row.nonzero()[:, 0].tolist()) for row in sets)
        limits[extent] = dict(enumerate(windowed))
        plans.append(DraftPlan(((), (2,))[i % 2], 4, (), windowed if i < 5 else ()))
    limits[extents[5]] = {}
    parts = [([7], len(p), e) for p, e in zip(prompts, extents, strict=True)]
    batch = RaggedBatch.build(parts)
    reader = UnitReader(batch, WINDOW, kv_heads, torch.float32)
    ours = model.forward(batch, arena, members=members_of(batch, plans, layers, reader))
    monkeypatch.setattr("admg.model.attend", Dense(limits))
    whole = [None if p is None else DraftPlan(p.dropped, 4) for p in plans]
    batch = RaggedBatch.build(parts)
    expected = model.forward(batch, arena, members=members_of(batch, whole, layers))
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-5)
    monkeypatch.setattr("admg.model.attend", Dense({}))
    unlimited = model.forward(batch, arena, members=members_of(batch, whole, layers))
    assert not torch.allclose(expected[:1], unlimited[:1], atol=1e-2)


def test_similarities_and_what_is_left_out(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One unit, or one set of units, limited in one layer, against a pass that is limited there."""
    layers, kv_heads = model.config.num_layers, model.config.num_kv_heads
    arena, extents, prompts = prefilled(model)
    extent, prompt = extents[4], prompts[4]
    positions = torch.tensor([4, 11, 13, 60, 130])
    near = Near.of([extent] * 5, positions, WINDOW, kv_heads, torch.float32)
    sets = torch.zeros(layers, 5, kv_heads, dtype=torch.bool)
    sets[1], sets[3, :, 0] = True, True
    observer = LimitedObserver(arena, positions, near, sets, ranked=True)
    batch = RaggedBatch.build([(prompt, 0, extent)])
    kept = Seen()
    model.forward(batch, arena, observers=[kept], heads=observer)
    assert observer.similarity.shape == (layers, 5, kv_heads)

    def added(limits: Limits, layer: int) -> Tensor:
        monkeypatch.setattr("admg.model.attend", Dense({extent: limits}))
        other = Seen()
        model.forward(RaggedBatch.build([(prompt, 0, extent)]), arena, observers=[other])
        torch.testing.assert_close(other.x[layer], kept.x[layer], atol=1e-4, rtol=1e-4)
        return other.added[layer][positions]

    for layer in (0, 3):
        x, a = kept.x[layer][positions], kept.added[layer][positions]
        for head in range(kv_heads):
            b = added({layer: (head,)}, layer)
            cosine = torch.cosine_similarity((x + a).double(), (x + b).double(), dim=-1)
            torch.testing.assert_close(
                observer.similarity[layer, :, head].double(), cosine, atol=1e-5, rtol=0
            )
    assert (observer.similarity[:, :2] > 1 - 1e-6).all(), "nothing is out of reach of these tokens"
    assert observer.similarity[:, 3:].min() < 0.999
    for layer, heads in ((1, tuple(range(kv_heads))), (3, (0,))):
        missing = kept.added[layer][positions] - added({layer: heads}, layer)
        torch.testing.assert_close(observer.left_out[layer], missing, atol=1e-4, rtol=1e-4)
    assert observer.left_out[0].abs().max() < 1e-5


class Seen:
    """Each layer's input and output."""

    def __init__(self) -> None:
        self.x: list[Tensor] = []
        self.added: list[Tensor] = []

    def see(self, layer: int, x: Tensor, added: Tensor) -> None:
        self.x.append(x)
        self.added.append(added)


def test_the_units_that_change_least_are_chosen() -> None:
    units = [[0.9, 0.99], [0.999, 0.2], [0.95, 0.97]]
    assert choose_windowed(units, WindowRule(share=0.5), ()) == ((1,), (0,), (1,))
    assert choose_windowed(units, WindowRule(share=0.5), (1,)) == ((1,), (), (0, 1))
    assert choose_windowed(units, WindowRule(threshold=0.97), ()) == ((1,), (0,), (1,))
    assert choose_windowed(units, WindowRule(share=0.0), ()) == ()
    assert choose_windowed(units, WindowRule(threshold=1.0), ()) == ()


def test_whole_layers_can_be_chosen_instead() -> None:
    units = [[0.9, 0.99], [0.999, 0.2], [0.95, 0.97]]
    half = WindowRule(share=0.5, per="layer")  # of six units: one layer and a half, so two
    assert choose_windowed(units, half, ()) == ((0, 1), (), (0, 1))
    assert choose_windowed(units, WindowRule(share=0.3, per="layer"), (2,)) == ((0, 1), (), ())
    assert choose_windowed(units, WindowRule(threshold=0.95, per="layer"), ()) == ((), (), (0, 1))
    with pytest.raises(ValueError, match="window_per is 'row'"):
        WindowRule(share=0.5, per="row")  # type: ignore[arg-type]


def test_samples_are_spread_over_each_prompt() -> None:
    rule = WindowRule(share=0.5, window=WINDOW)
    tokens, owners = sampled([0, 300], [400, 100], [400, 400], rule)
    assert owners == sorted(owners)
    first = [t for t, o in zip(tokens, owners, strict=True) if o == 0]
    later = [t - 400 + 300 for t, o in zip(tokens, owners, strict=True) if o == 1]
    assert SAMPLES // 2 < len(first) <= SAMPLES and min(first) >= SINKS + WINDOW
    assert first[-1] == 399 and len({b - a for a, b in itertools.pairwise(first)}) == 1
    assert later == [t for t in first if t >= 300], "chunks choose what one pass would choose"
    assert sampled([0], [SINKS + WINDOW], [SINKS + WINDOW], rule) == ([], [])


@pytest.mark.parametrize("remake", [None, 5])
@pytest.mark.parametrize("fields", [{}, {"hole_filling": False}, {"verification": "token"}])
def test_the_text_is_plain_text(
    model: Transformer, remake: int | None, fields: dict[str, object]
) -> None:
    laws = [SamplingParams(max_tokens=20), SamplingParams(max_tokens=20, temperature=1.0, seed=2)]
    prompts = random_prompts(model.config.vocab_size, LENGTHS)
    greedy = "verification" in fields
    requests = requests_for(prompts, [laws[0 if greedy else i % 2] for i in range(len(prompts))])
    plain = decode(model, requests, engine_config(max_num_seqs=3))
    rule = WindowRule(share=0.5, window=WINDOW)
    draft = drafting(1, windows=rule, remake_after=remake, **fields)
    engine = Engine(model, engine_config(draft, max_num_seqs=3), eos_token_ids=[])
    for request in requests:
        engine.submit(request)
    done, plans = {}, {}
    begun: dict[str, int] = {}  # what limits leave out is learned anew once a plan is
    while engine.has_work:
        done |= {c.key: c.token_ids for c in engine.step()}
        for s in engine._scheduler.decoding():
            plans.setdefault(s.request.key, set()).add(s.plan)
            verified = s.computed - s.prompt_length
            if s.learned.left_out is not None and s.plan is not None and s.plan.windowed:
                first = remake is None or s.learned.unit_sums is not None
                began = 0 if first else begun.setdefault(s.request.key, verified)
                assert (s.learned.left_out.weight > 0) == (verified > began)
    assert done == {k: c.token_ids for k, c in plain.items()}
    units = model.config.num_layers * model.config.num_kv_heads
    for key, seen in plans.items():
        limited = {sum(map(len, p.windowed)) for p in seen if p is not None}
        long = len(prompts[int(key)]) > SINKS + WINDOW
        assert limited <= {0, round(0.5 * units)}
        assert (round(0.5 * units) in limited) == (long or remake is not None)


def test_units_are_ranked_again_and_again(model: Transformer) -> None:
    """Whole sets change while a sequence is decoded, and what they leave out goes on."""
    prompts = random_prompts(model.config.vocab_size, LENGTHS)
    requests = requests_for(prompts, SamplingParams(max_tokens=24, temperature=1.0, seed=2))
    rule = WindowRule(share=0.5, window=WINDOW)
    draft = drafting(0, windows=rule, remake_every=4, similarity_decay=0.5)
    engine = Engine(model, engine_config(draft, max_num_seqs=3), eos_token_ids=[])
    for request in requests:
        engine.submit(request)
    done, plans = {}, {}
    while engine.has_work:
        done |= {c.key: c.token_ids for c in engine.step()}
        for s in engine._scheduler.decoding():
            assert s.plan is not None and s.learned.unit_weight < 1 / (1 - 0.5)
            assert s.learned.left_out is not None
            learned = s.learned.left_out.weight > 0
            assert learned or s.computed - s.prompt_length <= 4 + draft.draft_tokens
            if s.plan.windowed:
                plans.setdefault(s.request.key, set()).add(s.plan.windowed)
    assert max(map(len, plans.values())) > 2
    plain = decode(model, requests, engine_config(max_num_seqs=3))
    assert done == {k: c.token_ids for k, c in plain.items()}


def test_a_window_over_everything_drafts_what_is_verified(model: Transformer) -> None:
    prompts = random_prompts(model.config.vocab_size, LENGTHS)
    requests = requests_for(prompts, SamplingParams(max_tokens=12))
    rule = WindowRule(share=1.0, window=200)
    draft = DraftConfig(drop=DropRule(count=0), windows=rule, remake_after=2)
    done = decode(model, requests, engine_config(draft, max_num_seqs=3))
    accepted = sum(c.stats.num_accepted_draft_tokens for c in done.values())
    assert accepted == sum(c.stats.num_draft_tokens for c in done.values()) > 0


def test_rules_are_checked() -> None:
    for fields, message in (
        ({}, "exactly one of share, threshold"),
        ({"share": 0.5, "threshold": 0.5}, "exactly one of share, threshold"),
        ({"share": 1.5}, "window_share is 1.5: it must be a share"),
        ({"threshold": 2.0}, "window_threshold is 2.0: it must be a cosine"),
        ({"share": 0.5, "window": 0}, "window is 0: it must be 1 to 4096 keys"),
    ):
        with pytest.raises(ValueError, match=message):
            WindowRule(**fields)  # type: ignore[arg-type]


def test_a_shared_prefix_is_tried_as_well(model: Transformer) -> None:
    shared, *ends = random_prompts(model.config.vocab_size, [100, 2, 3, 2])
    draft = drafting(0, windows=WindowRule(share=0.5, window=WINDOW))
    config = engine_config(draft, max_num_seqs=12, max_model_len=200)
    engine = Engine(model, config, eos_token_ids=[])
    law = SamplingParams(max_tokens=8)
    done = list(engine.generate(requests_for([shared + end for end in ends], law)))
    assert engine.counters.num_cached_tokens >= 300 and len(done) == 3
    assert engine._prefixes._prefix is not None
    assert engine._prefixes._prefix.learned.unit_weight > SAMPLES // 2


@pytest.mark.parametrize("similarity", ["mean", "last"])
def test_who_gives_self_drafts_up_learns_nothing_for_them(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, similarity: str
) -> None:
    monkeypatch.setattr("admg.controller.Controller.own_may_pay", lambda *_: False)
    shared, *ends = random_prompts(model.config.vocab_size, [60, 2, 3, 2])
    rule = WindowRule(share=0.5, window=WINDOW)
    draft = drafting(1, drafter="auto", similarity=similarity, windows=rule)
    config = engine_config(draft, max_num_seqs=12, max_model_len=200)
    engine = Engine(model, config, eos_token_ids=[])
    for request in requests_for([shared + end for end in ends], SamplingParams(max_tokens=8)):
        engine.submit(request)
    while engine.has_work:
        for completion in engine.step():
            assert completion.stats.attention_similarity == []
            assert completion.stats.dropped_attention_layers == []
        for s in engine._scheduler.decoding():
            assert (s.learned.filling, s.learned.left_out, s.units) == (None, None, None)
    assert engine.counters.num_cached_tokens >= 180
