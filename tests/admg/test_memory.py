"""The KV budget on a device: arithmetic and measuring, with a stand-in for its counters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from admg.config import EngineConfig
from admg.draft_rules import WindowRule
from admg.families import read_model_config
from admg.kv_arena import SLOT_GRAIN, bytes_per_slot
from admg.memory import arena_size
from admg.workspace import _held, _passes, _until_known, reserved_bytes
from tests.admg.decoding import drafting, load

TOTAL, USED = 2**20, 2**18


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device of a mebibyte, a quarter of which is taken."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (TOTAL - USED, TOTAL))


@pytest.mark.usefixtures("counters")
@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_the_budget_is_what_others_leave_of_the_share(llama_checkpoint: Path, share: float) -> None:
    model = read_model_config(llama_checkpoint)
    config = EngineConfig(max_num_seqs=512, gpu_memory_utilization=share)
    slot = bytes_per_slot(model, torch.bfloat16)
    for reserved in (0, 100_000):
        size = arena_size(model, torch.bfloat16, "cuda", config, reserved)
        left = int(TOTAL * share) - USED - reserved
        assert size.num_slots == left // slot // SLOT_GRAIN * SLOT_GRAIN
    given = replace(config, kv_budget_bytes=slot * 128)
    assert arena_size(model, torch.bfloat16, "cuda", given, 100_000).num_slots == 128


@pytest.mark.usefixtures("counters")
def test_a_share_that_leaves_nothing_is_refused_by_name(llama_checkpoint: Path) -> None:
    model = read_model_config(llama_checkpoint)
    config = EngineConfig(gpu_memory_utilization=0.25)
    message = "gpu_memory_utilization is 0\\.25, which leaves 0 bytes for keys and values: "
    with pytest.raises(ValueError, match=message):
        arena_size(model, torch.bfloat16, "cuda", config)
    for share in (0.0, 1.01):
        with pytest.raises(ValueError, match=f"gpu_memory_utilization is {share}"):
            EngineConfig(gpu_memory_utilization=share)


@pytest.mark.parametrize("free", [0, 2**17, 2**30])
def test_one_sequence_fits_a_machine_whatever_is_free_at_the_moment(
    llama_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    model = read_model_config(llama_checkpoint)
    one = model.max_position_embeddings * bytes_per_slot(model, torch.float32)
    sizes = {"SC_PAGE_SIZE": 1, "SC_AVPHYS_PAGES": free, "SC_PHYS_PAGES": 4 * one}
    monkeypatch.setattr("admg.memory.os.sysconf", sizes.__getitem__)
    config = EngineConfig(max_num_seqs=2, max_model_len=model.max_position_embeddings)
    sequences = 2 if free == 2**30 else 1
    size = arena_size(model, torch.float32, "cpu", config)
    assert size.num_slots == sequences * model.max_position_embeddings == sequences * 512
    sizes["SC_PHYS_PAGES"] = 2 * one
    if free < one:
        with pytest.raises(ValueError, match="or set max_model_len to 256 or less"):
            arena_size(model, torch.float32, "cpu", config)


def test_passes_are_measured_and_means_counted(
    llama_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measured pass is a full prefill; afterwards nothing of it is held."""
    model = load(llama_checkpoint)
    seen = []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda b, a: (seen.append(len(b.positions)), forward(b, a))[1]
    )
    for name, value in (("memory_allocated", 1000), ("max_memory_allocated", 5000)):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    config = EngineConfig(max_num_seqs=3, prefill_tokens=70, draft=drafting(1, draft_tokens=2))
    assert _passes(model, config) == 4000 and seen == [70]
    each = model.config.num_layers * model.config.hidden_size
    means = 4 * 4 * each  # one for each sequence and one for nobody, fp32
    limited = replace(config, draft=drafting(1, draft_tokens=2, windows=WindowRule(share=0.5)))
    empty = replace(config, draft=drafting(1, draft_tokens=2, hole_filling=False))
    assert 0 < _held(model, empty) == _held(model, config) - means
    assert _held(model, limited) == _held(model, config) + means
    assert _until_known(model, empty) == 0
    assert _until_known(model, config) == 3 * 3 * each * 4  # a token more than is drafted
    assert _until_known(model, limited) == 2 * _until_known(model, config)
    automatic = replace(config, draft=drafting(1, draft_tokens=2, drafter="auto"))
    assert _until_known(model, automatic) == 3 * 13 * each * 4, "lookup copies up to 12"
    assert reserved_bytes(model, config) == 0, "the CPU's pages come on demand"
