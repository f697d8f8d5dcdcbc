"""Rounds on a CUDA device: captured and played ones, what the host waits for, and the tokens.

`python -m pytest -m gpu tests/admg/test_device_gpu.py`. Tiny models; seconds.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from admg.config import DraftConfig, SamplingParams
from admg.cuda_graphs import GraphLimits
from admg.device_rounds import DeviceRounds
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
    random_prompts,
    requests_for,
)

pytestmark = pytest.mark.gpu

LENGTHS = [1, 37, 90, 22, 5, 64, 40, 3, 77]
LAWS = [
    SamplingParams(max_tokens=40),
    SamplingParams(max_tokens=24, temperature=1.0, seed=3),
    SamplingParams(max_tokens=33, temperature=0.7, top_p=0.9, min_tokens=9, seed=5),
]
PLANS: dict[str, DraftConfig] = {
    "plain": PLAIN,
    "dropped": drafting(2),
    "fixed-with-mlps": drafting(attention=(1, 3), mlps=(2,)),
    "exit": drafting(1, exit_threshold=0.4, draft_tokens=8),
    "windows": drafting(1, windows=WindowRule(share=0.5, window=9)),
    "lookup": drafting(0, drafter="ngram"),
}


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def model(request: pytest.FixtureRequest, llama_checkpoint: Path) -> Transformer:
    return Transformer.load(llama_checkpoint, dtype=request.param, device="cuda")


@pytest.fixture(scope="module")
def rows(model: Transformer) -> list[Request]:
    prompts = random_prompts(model.config.vocab_size, LENGTHS)
    return requests_for(prompts, [LAWS[i % len(LAWS)] for i in range(len(prompts))])


def engine_of(model: Transformer, draft: DraftConfig, *, captures: bool = True) -> Engine:
    """An engine of 4 sequences that plays whole rounds, with graphs or without."""
    engine = Engine(model, engine_config(draft, max_num_seqs=4, check=False), eos_token_ids=[])
    assert isinstance(engine._way, DeviceRounds), "auto is the device on CUDA"
    if not captures:
        engine._way._graphs._recorder = None
    return engine


def ids(done: dict[str, Completion]) -> dict[str, list[int]]:
    return {key: c.token_ids for key, c in done.items()}


@pytest.mark.parametrize("name", PLANS)
def test_replay_equals_eager_bit_for_bit(model, rows, name: str) -> None:
    """Results, keys, values and running means after every round; refill and shrinking batches."""
    engines = [engine_of(model, PLANS[name], captures=c) for c in (True, False)]
    for row in rows:
        for engine in engines:
            engine.submit(row)
    for engine in engines:  # the warm-up's times differ, and so does what it leaves behind
        engine.step()
    rounds = 0
    while engines[0].has_work:
        one, other = ([(c.key, c.token_ids) for c in engine.step()] for engine in engines)
        assert one == other
        ways = [engine._way for engine in engines]
        count = len(engines[0]._scheduler.running)
        assert torch.equal(ways[0]._buffers.result[:count], ways[1]._buffers.result[:count])
        for s, twin in zip(*(e._scheduler.running for e in engines), strict=True):
            assert s.extent == twin.extent and s.tokens == twin.tokens
            for a, b in zip(*(e._arena._heads(s.extent) for e in engines), strict=True):
                assert torch.equal(a[:, :, : s.computed], b[:, :, : s.computed])
            if s.learned.filling is not None and twin.learned.filling is not None:
                assert torch.equal(s.learned.filling.sums, twin.learned.filling.sums)
        rounds += 1
    assert rounds > 10 and not engines[1].has_work
    report, eager = (engine.graphs for engine in engines)
    assert report.replayed > 0 and report.stopped is None, report
    assert eager.replayed == 0 == eager.graphs
    assert report.graphs == len(report.by_key) and report.capture_seconds > 0


@pytest.mark.parametrize("name", PLANS)
def test_tokens_are_those_of_the_cpu(model, rows, llama_checkpoint: Path, name: str) -> None:
    """In fp32; plain decoding alone on the CPU is the oracle."""
    if model.dtype != torch.float32:
        pytest.skip("exactness is promised in fp32")
    on_cpu = load(llama_checkpoint)
    plain = ids(decode(on_cpu, rows, engine_config()))
    done = ids({c.key: c for c in engine_of(model, PLANS[name]).generate(rows)})
    keys = [r.key for r in rows]
    assert_identical(on_cpu, rows, [done[k] for k in keys], [plain[k] for k in keys])


def test_tokens_are_those_of_the_hosts_rounds(model, rows) -> None:
    """On the same device: prefill, drafting and verification pass by pass (fp32)."""
    if model.dtype != torch.float32:
        pytest.skip("exactness is promised in fp32")
    config = engine_config(drafting(2), max_num_seqs=4, rounds="host")
    host = ids(decode(model, rows, config))
    done = ids({c.key: c for c in engine_of(model, drafting(2)).generate(rows)})
    assert sum(done[k] != host[k] for k in host) <= len(host) / 5, "near-ties only"


def test_later_batches_replay_what_earlier_ones_captured(model, rows) -> None:
    engine = engine_of(model, drafting(attention=(1, 3)))
    list(engine.generate(rows))
    report = engine.graphs
    before = (report.graphs, report.replayed, report.nbytes)
    list(engine.generate(replace(r, key=f"again-{r.key}") for r in rows))
    # Where rows end decides how many passes the last rounds have: a few kinds may be new.
    assert report.graphs <= before[0] + 6
    assert report.replayed - before[1] > 10
    assert report.stopped is None and report.nbytes <= engine._way._graphs._limits.nbytes


@pytest.mark.parametrize("name", PLANS)
def test_the_host_waits_once_a_round(model, rows, name: str) -> None:
    """Whatever waits in secret raises; the one explicit wait is for the round's result."""
    engine = engine_of(model, PLANS[name])
    for row in rows[:4]:
        engine.submit(replace(row, sampling=replace(row.sampling, max_tokens=60)))
    for _ in range(6):
        engine.step()
    waits: list[int] = []
    way = engine._way
    with pytest.MonkeyPatch.context() as patch:
        wait = way._wait
        patch.setattr(way, "_wait", lambda: (waits.append(1), wait()))
        # A round of a new kind would be captured, and a capture waits.
        patch.setattr(way._graphs, "_recorder", None)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                engine.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(waits) == 3


def test_the_kv_budget_is_what_is_left(model) -> None:
    """Of the share that was asked for, with room for passes and graphs."""
    free, total = torch.cuda.mem_get_info()
    room = 2 * GraphLimits.of(torch.device("cuda")).nbytes + 2**31
    share = (total - free + room) / total
    config = replace(engine_config(drafting(1), max_num_seqs=512), gpu_memory_utilization=share)
    engine = Engine(model, config, eos_token_ids=[])
    held = engine._arena.keys.nbytes + engine._arena.values.nbytes
    assert 0 < held <= room
    used = total - torch.cuda.mem_get_info()[0]
    assert used <= share * total
    with pytest.raises(ValueError, match=r"gpu_memory_utilization is 0\.001, which leaves 0 bytes"):
        Engine(model, replace(config, gpu_memory_utilization=0.001), eos_token_ids=[])
