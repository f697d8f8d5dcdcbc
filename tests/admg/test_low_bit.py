"""Weights of 8 and 4 bits: how far their products stray, and that only drafts see them."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch

from admg.config import DraftConfig, SamplingParams
from admg.engine import Engine
from admg.linear import Linear
from admg.low_bit import _OPERATIONS, Int4Linear, Int8Linear, check_low_bit, low_bit_linear
from admg.low_bit_cuda import EitherLinear, Fp8Linear, Tried
from tests.admg.decoding import decode, drafting, engine_config, load, random_prompts, requests_for

LENGTHS = [12, 40, 2, 77, 1, 25]
LAWS = [SamplingParams(max_tokens=16), SamplingParams(max_tokens=16, temperature=1.0, seed=8)]


def steps(kind: str, weight: torch.Tensor) -> torch.Tensor:
    """[O, I] half of the distance between two levels of each weight: the most it may move."""
    if kind == "int8":
        return (weight.abs().amax(1, keepdim=True) / 254).expand_as(weight)
    groups = weight.view(len(weight), -1, 32)
    half = (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / 30
    return half.expand_as(groups).reshape(weight.shape)


@pytest.mark.parametrize("tokens", [1, 3, 16, 40])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_product_strays_no_further_than_its_rounding(kind: str, tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    weight = torch.randn(64, 96, generator=generator) * torch.rand(64, 1, generator=generator)
    weight[5] = 0.0
    bias = torch.randn(64, generator=generator)
    x = torch.randn(tokens, 96, generator=generator)
    product = low_bit_linear(kind, weight, bias, Tried())  # type: ignore[arg-type]
    assert isinstance(product, {"int8": Int8Linear, "int4": Int4Linear}[kind])
    exact = x.double() @ weight.double().T + bias.double()
    bound = x.double().abs() @ steps(kind, weight).double().T + 1e-4
    difference = (product(x).double() - exact).abs()
    assert (difference <= bound).all()
    assert difference.max() > 1e-5, "nothing was rounded"


@pytest.mark.parametrize("tokens", [1, 5, 17])
def test_fp8_rounds_both_sides_by_rows(tokens: int) -> None:
    """3 bits of fraction: a product of two numbers is off by an eighth at most, and a bit."""
    generator = torch.Generator().manual_seed(tokens)
    weight = torch.randn(48, 64, generator=generator) * torch.rand(48, 1, generator=generator)
    weight[5] = 0.0
    bias = torch.randn(48, generator=generator).bfloat16()
    x = torch.randn(tokens, 64, generator=generator).bfloat16()
    product = low_bit_linear("fp8", weight, bias, Tried())
    assert isinstance(product, Fp8Linear)
    assert weight.numel() < product.nbytes < 1.2 * weight.numel()
    exact = x.double() @ weight.double().T + bias.double()
    bound = x.double().abs() @ weight.double().abs().T / 7 + exact.abs() / 100 + 1e-3
    difference = (product(x).double() - exact).abs()
    assert product(x).dtype == torch.bfloat16
    assert (difference <= bound).all() and difference.max() > 1e-3


def test_what_is_faster_is_taken_for_each_number_of_tokens_and_shape() -> None:
    """By a clock that says that small weights lose from 8 tokens on; each case is timed once."""
    weight = torch.randn(32, 64)
    small, full = Fp8Linear(weight, None), Linear(weight)
    timed: list[int] = []

    def seconds(device: torch.device, run) -> float:
        out = run()
        timed.append(len(out))
        return 1.0 if torch.equal(out, full(x)) else len(out) / 8

    tried = Tried(seconds)
    either = [EitherLinear(small, full, weight.shape, tried) for _ in range(3)]
    for tokens in (1, 4, 9, 1, 9):
        x = torch.randn(tokens, 64)
        for product in either:
            assert torch.equal(product(x), (full if tokens == 9 else small)(x))
    assert sorted(set(timed)) == [1, 4, 9] and len(timed) == 3 * 2 * 5
    assert either[0].nbytes == small.nbytes


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 8, 61, 305])
@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
def test_products_on_cuda(kind: str, tokens: int) -> None:
    """Against the same weights on the CPU in fp64. `pytest -m gpu tests/admg/test_low_bit.py`."""
    check_low_bit(kind, "cuda", torch.bfloat16)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(tokens)
    weight = torch.randn(512, 256, generator=generator).bfloat16()
    bias = torch.randn(512, generator=generator).bfloat16()
    x = torch.randn(tokens, 256, generator=generator).bfloat16()
    on_device = (weight.cuda(), bias.cuda())
    product = low_bit_linear(kind, *on_device, Tried())  # type: ignore[arg-type]
    assert isinstance(product, EitherLinear)
    exact = x.double() @ weight.double().T + bias.double()
    for way in (product, product._small):
        out = way(x.cuda()).double().cpu()
        error = (out - exact).norm() / exact.norm()
        assert error < {"int8": 0.01, "int4": 0.12, "fp8": 0.06}[kind]


def test_shapes_that_int4_does_not_take_are_int8() -> None:
    for shape in ((64, 40), (60, 64)):
        product = low_bit_linear("int4", torch.randn(shape), None, Tried())
        assert isinstance(product, Int8Linear)
        assert product(torch.ones(2, shape[1])).shape == (2, shape[0])


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_bytes_are_those_of_small_weights(kind: str, llama_checkpoint: Path) -> None:
    model = load(llama_checkpoint, kind)  # type: ignore[arg-type]
    assert model.low_bit is not None and model.low_bit.low_bit is None
    numbers = (
        sum(
            w.qkv._weight.numel()
            + w.o._weight.numel()
            + w.gate_up._weight.numel()
            + w.down._weight.numel()
            for w in model._layers
        )
        + model._head._weight.numel()
    )
    share = model.low_bit_bytes / numbers
    assert 1.0 < share < 1.1 if kind == "int8" else 0.7 < share < 1.1
    assert load(llama_checkpoint).low_bit is None


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("verification", ["shared", "token"])
def test_the_text_is_plain_text(kind: str, verification: str, llama_checkpoint: Path) -> None:
    """Drafts of other weights change how many are accepted and nothing else."""
    model = load(llama_checkpoint, kind)  # type: ignore[arg-type]
    prompts = random_prompts(model.config.vocab_size, LENGTHS)
    laws = [LAWS[i % 2 if verification == "shared" else 0] for i in range(len(prompts))]
    plain = decode(model, requests_for(prompts, laws), engine_config(max_num_seqs=3))
    accepted = {}
    for weights in ("full", kind):
        draft = drafting(0, verification=verification, draft_weights=weights)
        done = decode(model, requests_for(prompts, laws), engine_config(draft, max_num_seqs=3))
        assert {k: c.token_ids for k, c in done.items()} == {
            k: c.token_ids for k, c in plain.items()
        }
        accepted[weights] = [
            sum(c.stats.num_accepted_draft_tokens for c in done.values()),
            sum(c.stats.num_draft_tokens for c in done.values()),
        ]
    assert accepted["full"][0] == accepted["full"][1], "the same weights draft what is verified"
    assert 0 < accepted[kind][0] < accepted[kind][1], "the small weights did not draft"


def test_the_controller_gives_them_back_where_they_do_not_pay(
    llama_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("admg.controller.Controller.own_may_pay", lambda *_: False)
    model = load(llama_checkpoint, "int8")
    assert model.low_bit is not None
    small = [weakref.ref(w.qkv._weight) for w in model.low_bit._layers]
    small.append(weakref.ref(model.low_bit._head._weight))
    held = model.low_bit_bytes
    requests = requests_for(random_prompts(model.config.vocab_size, LENGTHS), LAWS[0])
    draft = drafting(0, drafter="auto", draft_weights="int8")
    engine = Engine(model, engine_config(draft, max_num_seqs=3), eos_token_ids=[])
    assert all(weight() is not None for weight in small), "nothing is decided before the warm-up"
    done = {c.key: c for c in engine.generate(requests)}
    gc.collect()
    assert all(weight() is None for weight in small), "while the engine lives"
    assert (model.low_bit, model.low_bit_bytes) == (None, 0)
    explanation = engine.explain()
    assert explanation is not None and explanation.released_bytes == held > 0
    plain = decode(model, requests, engine_config(max_num_seqs=3))
    assert {k: c.token_ids for k, c in done.items()} == {k: c.token_ids for k, c in plain.items()}
    assert not any("admg" in c.stats.drafter_tokens for c in done.values())


def test_what_cannot_be_is_refused(llama_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="draft_weights is 'int8': it must be full on meta"):
        check_low_bit("int8", "meta")
    with pytest.raises(ValueError, match=r"draft_weights is 'int4': .* know bfloat16 only"):
        check_low_bit("int4", "cuda", torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(_OPERATIONS, ("int8", "cpu"), ("_int8_mm_of_tomorrow",))
        with pytest.raises(ValueError, match=r"lacks _int8_mm_of_tomorrow for cpu"):
            check_low_bit("int8", "cpu")
    with pytest.raises(ValueError, match="draft_weights is 'int4': it must be full with the draf"):
        DraftConfig(drafter="ngram", draft_weights="int4")
    with pytest.raises(ValueError, match="draft_weights is 'int2': it must be full, int8, int4 or"):
        DraftConfig(draft_weights="int2")  # type: ignore[arg-type]
    config = engine_config(drafting(0, draft_weights="int8"))
    with pytest.raises(ValueError, match=r"draft_weights is 'int8': .* loaded without"):
        Engine(load(llama_checkpoint), config, eos_token_ids=[])


def test_statistics_are_said_to_go_by_measured_time() -> None:
    """Which of two products drafts is measured on CUDA."""
    assert DraftConfig(draft_weights="int4").order_dependent
    assert not DraftConfig().order_dependent
