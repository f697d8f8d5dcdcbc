"""Rounds played whole on the device give the tokens that the host's give, and plain decoding alone.

fp32 on the CPU, where the device's rounds run operation by operation. Tiny models. The plans that
add little to others are slow, about a minute in all:
`python -m pytest -m slow tests/admg/test_device_rounds.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from admg.checkpoint import Weights
from admg.config import DraftConfig, SamplingParams
from admg.draft_rules import WindowRule
from admg.engine import Engine
from admg.model import Transformer
from admg.request import Completion, Request
from tests.admg.decoding import (
    PLAIN,
    assert_identical,
    decode,
    drafting,
    engine_config,
    load,
    load_changed,
    random_prompts,
    requests_for,
)
from tests.admg.plain_cache import decode_with_plain_cache

LENGTHS = [1, 37, 90, 22]
MAX_TOKENS = [24, 16, 11, 1]
LAWS = [
    SamplingParams(),
    SamplingParams(temperature=1.0, seed=3),
    SamplingParams(temperature=0.8, min_p=0.05, min_tokens=9),
    SamplingParams(temperature=0.7, top_p=0.9, seed=5),
    SamplingParams(temperature=1.5, top_k=12, top_p=0.95, min_p=0.02, seed=2**63 - 1),
    SamplingParams(temperature=0.9, repetition_penalty=1.3, min_tokens=8),
]


@pytest.fixture(scope="module")
def model(llama_checkpoint: Path) -> Transformer:
    return load(llama_checkpoint)


@pytest.fixture(scope="module")
def rows(model: Transformer) -> list[Request]:
    """Every law with every length."""
    prompts = random_prompts(model.config.vocab_size, LENGTHS) * len(LAWS)
    laws = [law for law in LAWS for _ in LENGTHS]
    for i, law in enumerate(laws):
        most = MAX_TOKENS[i % len(LENGTHS)]
        laws[i] = replace(law, max_tokens=most, min_tokens=min(law.min_tokens, most))
    return requests_for(prompts, laws)


@pytest.fixture(scope="module")
def eos(model: Transformer, rows: list[Request]) -> list[int]:
    """Tokens that rows do emit, so that some end mid-round."""
    free = decode(model, rows[4:11:3], engine_config(max_num_seqs=4))
    return sorted({c.token_ids[len(c.token_ids) // 2] for c in free.values()})


@pytest.fixture(scope="module")
def plain(model: Transformer, rows: list[Request], eos: list[int]) -> dict[str, Completion]:
    """Every row alone, by the host's rounds."""
    return decode(model, rows, engine_config(rounds="host"), eos_token_ids=eos)


def on_device(
    model: Transformer, rows: Sequence[Request], eos: list[int], draft: DraftConfig, **sizes: Any
) -> tuple[dict[str, Completion], Engine]:
    """Completions by key of an engine that plays whole rounds, and the engine."""
    config = engine_config(draft, **({"rounds": "device", "max_num_seqs": 4} | sizes))
    engine = Engine(model, config, eos_token_ids=eos)
    return {c.key: c for c in engine.generate(rows)}, engine


PLANS: dict[str, DraftConfig] = {
    "plain": PLAIN,
    "nothing-dropped": drafting(0),
    "one": drafting(1),
    "three": drafting(3, draft_tokens=6),
    "all": drafting(99, keep_first=0, keep_last=0),
    "by-threshold": drafting(threshold=0.6),
    "fixed-with-mlps": drafting(attention=(1, 3), mlps=(2,)),
    "holes-left-empty": drafting(2, hole_filling=False),
    "exit": drafting(1, exit_threshold=0.4, draft_tokens=8),
    "windows": drafting(1, windows=WindowRule(share=0.5, window=9)),
    "all-windows": drafting(0, windows=WindowRule(share=1.0, window=1)),
    "lookup": drafting(0, drafter="ngram"),
    "auto": drafting(2, drafter="auto"),
    "tail": drafting(1, lookup_tail=3),
    "remade": drafting(2, remake_after=5, windows=WindowRule(share=0.4, window=9)),
}


def each(*names: str, of: Iterable[str] = PLANS) -> list[Any]:
    """These plans, and the others as slow ones."""
    assert set(names) <= set(of) <= set(PLANS)
    return [*names, *(pytest.param(n, marks=pytest.mark.slow) for n in of if n not in names)]


@pytest.mark.parametrize(
    "name", each("three", "fixed-with-mlps", "exit", "windows", "auto", "remade")
)
def test_tokens_are_those_of_plain_decoding(model, rows, eos, plain, name: str) -> None:
    """All laws in one batch that shrinks and is refilled; rows end mid-round."""
    order = [rows[(i * 7) % len(rows)] for i in range(len(rows))]
    done, engine = on_device(model, order, eos, PLANS[name])
    ids = [[d[r.key].token_ids for r in rows] for d in (done, plain)]
    ties = assert_identical(model, rows, *ids)
    if not ties:
        assert {k: c.finish_reason for k, c in done.items()} == {
            k: c.finish_reason for k, c in plain.items()
        }
    drafted = sum(c.stats.num_draft_tokens for c in done.values())
    accepted = sum(c.stats.num_accepted_draft_tokens for c in done.values())
    if name == "tail":
        assert engine.graphs is None, "the host plays"
    else:  # and not only in the warm-up
        rounds = max(c.stats.num_spec_steps for c in done.values())
        assert engine.graphs.eager > rounds
    if name == "nothing-dropped":  # the draft is the target, and the noise is shared
        assert accepted > 0.95 * drafted > 0
    elif name not in ("plain", "auto"):
        assert 0 < accepted < drafted


@pytest.mark.parametrize("name", each("windows", of=("windows", "three", "exit")))
def test_drafts_are_those_of_the_hosts_rounds(model, rows, eos, name: str) -> None:
    """Running means, windows, exits and stops too: rows draft and keep the same number of tokens.

    Means are sums in another order, so a draft token at a near-tie may differ here and there.
    """
    done, _ = on_device(model, rows, eos, PLANS[name])
    config = engine_config(PLANS[name], rounds="host", max_num_seqs=4)
    host = decode(model, rows, config, eos_token_ids=eos)
    counts = [
        [(d[r.key].stats.num_draft_tokens, d[r.key].stats.num_accepted_draft_tokens) for r in rows]
        for d in (done, host)
    ]
    different = sum(a != b for a, b in zip(*counts, strict=True))
    assert different <= len(rows) / 20, counts


@pytest.mark.parametrize("name", each("windows", of=("windows", "three", "lookup")))
def test_units_read_in_parts(
    model, rows, eos, plain, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a device that a few long units would not keep busy."""
    monkeypatch.setattr("admg.device_round.wanted_units", lambda *_: 9)
    done, engine = on_device(model, rows, eos, PLANS[name])
    assert_identical(model, rows, *[[d[r.key].token_ids for r in rows] for d in (done, plain)])
    assert engine.counters.num_accepted_draft_tokens > 0


class NoQuestions(TorchDispatchMode):
    """Fails where the host asks for what is in a tensor: on a device it would wait for that."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        asked = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal")
        name = func.name().split("::")[1].split(".")[0]
        assert not any(name.startswith(part) for part in asked), name
        if name in ("index", "index_put", "index_put_"):
            indices = [i for i in args[1] if i is not None]
            assert all(i.dtype != torch.bool for i in indices), "a mask as an index is a question"
        if name == "repeat_interleave":
            raise AssertionError("its size is a question")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["exit", "windows", "lookup"])
def test_a_round_asks_the_device_for_nothing(
    model, rows, eos, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it can be captured, and the host waits once, for its result (see `test_device_gpu`)."""
    config = engine_config(PLANS[name], rounds="device", max_num_seqs=4)
    engine = Engine(model, config, eos_token_ids=eos)
    play, played = engine._way._round.play, []

    def watched(*args: Any) -> None:
        with NoQuestions(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "tolist", None)
            play(*args)
        played.append(args)

    monkeypatch.setattr(engine._way._round, "play", watched)
    for row in rows[:14:2]:
        engine.submit(row)
    for _ in range(8):
        engine.step()
    assert len(played) >= 8
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoQuestions():
        torch.ones(1).item()


def nan_token(weights: Weights) -> None:
    """The embedding of token 13 is not a number."""
    weights.embed[13] = torch.nan


def test_a_draft_token_that_is_not_finite_harms_nobody(llama_checkpoint: Path, model, rows) -> None:
    """Some drafts come upon the token, plain decoding does not: completions must not differ."""
    poisoned = load_changed(llama_checkpoint, nan_token)
    good = [r for r in rows if r.sampling.greedy and 13 not in r.prompt_token_ids]
    reference = decode(model, good, engine_config())
    assert not any(13 in c.token_ids for c in reference.values())
    done, engine = on_device(poisoned, good, [], drafting(2))
    assert {k: c.token_ids for k, c in done.items()} == {
        k: c.token_ids for k, c in reference.items()
    }
    assert engine.counters.num_draft_tokens > 0


@torch.inference_mode()
def test_the_cache_is_what_a_pass_from_scratch_writes(model, rows, eos) -> None:
    """After every round, in every layer, for plans that drop, limit and fill holes."""
    draft = drafting(2, draft_tokens=5, windows=WindowRule(share=0.4, window=9))
    config = engine_config(draft, rounds="device", max_num_seqs=3)
    engine = Engine(model, config, eos_token_ids=eos)
    for row in rows[:8]:
        engine.submit(row)
    assert decode_with_plain_cache(engine, model) > 5 * model.config.num_layers
    assert engine.counters.num_accepted_draft_tokens < engine.counters.num_draft_tokens


def test_low_bit_drafts_on_the_device(llama_checkpoint: Path, rows, eos, plain) -> None:
    """Smaller weights draft, the target's verify."""
    model = load(llama_checkpoint, "int8")
    done, _ = on_device(model, rows, eos, drafting(0, draft_weights="int8"))
    assert_identical(model, rows, *[[d[r.key].token_ids for r in rows] for d in (done, plain)])
    drafted = sum(c.stats.num_draft_tokens for c in done.values())
    assert 0 < sum(c.stats.num_accepted_draft_tokens for c in done.values()) < drafted


@pytest.mark.parametrize("estimate", [1e-9, 1e9])
def test_a_round_faster_than_its_verification_says_nothing_of_drafts(
    model, rows, estimate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the estimate. Else drafts would be believed to be free, and at last divided by 0."""
    told: list[float] = []
    monkeypatch.setattr("admg.drafting.Drafting.observe_own", lambda *a: told.append(a[-1]))
    monkeypatch.setattr("admg.pass_cost.PassCost.estimate", lambda *_: estimate)
    _, engine = on_device(model, rows[:2], [], drafting(1))
    assert engine.counters.num_draft_tokens > 0
    assert bool(told) == (estimate < 1) and all(seconds > 0 for seconds in told)


def test_the_last_rounds_result_is_never_taken_for_this_ones(model, rows) -> None:
    """Were a round not played where its buffers are, that would be noticed, not committed."""
    engine = Engine(model, engine_config(drafting(1), rounds="device"), eos_token_ids=[])
    engine.submit(rows[0])
    for _ in range(3):
        engine.step()
    engine._way._graphs.play = lambda _: None
    with pytest.raises(RuntimeError, match="a round on cpu left no result"):
        engine.step()


def test_longer_sequences_are_rounds_of_another_kind(
    model, rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plain kernel loops over what it is told; tokens are the same whatever that is."""
    monkeypatch.setattr("admg.attention_varlen.BLOCK", 16)
    keys = []
    engine = Engine(
        model, engine_config(drafting(2), rounds="device", max_model_len=200), eos_token_ids=[]
    )
    play = engine._way._graphs.play
    engine._way._graphs.play = lambda key: (keys.append(key), play(key))[1]
    row = replace(rows[1], sampling=SamplingParams(max_tokens=60))
    (done,) = engine.generate([row])
    alone = decode(model, [row], engine_config(rounds="host"))
    assert_identical(model, [row], [done.token_ids], [alone[row.key].token_ids])
    bounds = {key.longest for key in keys if key.passes}
    assert bounds == {64, 128}, "37 tokens to 97"
