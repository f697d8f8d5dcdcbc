"""`admg-batch prepare widened`: the same function in a wider model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import safe_open

from admg.checkpoint import load_weights
from admg.config import SamplingParams
from admg.families import read_model_config
from admg.llm import LLM
from jobs import widened
from jobs.cli import main
from jobs.widened import parse_shape, widen_checkpoint
from tests.admg.decoding import (
    decode,
    drafting,
    engine_config,
    load,
    load_oracle,
    random_prompts,
    requests_for,
)

Checkpoints = Callable[[str], Path]


def prepare(source: Path, target: Path, shape: str, *more: str) -> Result:
    given = ["--model", str(source), "--output", str(target), "--shape", shape]
    return CliRunner().invoke(main, ["prepare", "widened", *given, "--dtype", "float32", *more])


def furthest(one: Path, other: Path, tokens: torch.Tensor) -> float:
    """The largest difference of the two models' logits, both run by transformers in fp32."""
    with torch.inference_mode():
        logits = [load_oracle(path)(tokens).logits for path in (one, other)]
    return float((logits[0] - logits[1]).abs().max())


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        # The tiny models: 64 hidden, 4 heads of 16 (Mistral: of 24), 2 KV heads, 144 units.
        ("llama", "160x10x10x32x432"),  # every wide head with KV of its own, each unit three times
        ("llama", "132x12x4x16x150"),  # grouped, heads as large as before, some units twice
        ("llama", "64x4x2x48x144"),  # nothing but the head size: a rotation alone
        ("llama-ungrouped-tied", "96x6x6x32x200"),
        ("llama-biases", "104x8x2x32x200"),
        ("llama3-rope-sharded", "128x8x4x32x288"),
        ("llama-linear-rope-old-spelling", "128x8x8x32x288"),
        ("llama-yarn-rope", "128x8x4x32x288"),
        ("mistral", "128x8x2x48x300"),
        ("qwen2", "128x8x4x16x288"),
    ],
)
def test_it_computes_the_same(
    checkpoints: Checkpoints, tmp_path: Path, name: str, shape: str
) -> None:
    source, target = checkpoints(name), tmp_path / "wide"
    done = prepare(source, target, shape)
    assert done.exit_code == 0, done.output
    narrow, wide = read_model_config(source), read_model_config(target)
    sizes = (wide.hidden_size, wide.num_heads, wide.num_kv_heads, wide.head_dim)
    assert "x".join(map(str, (*sizes, wide.intermediate_size))) == shape
    assert (wide.num_layers, wide.vocab_size) == (narrow.num_layers, narrow.vocab_size)
    # Far apart enough that a wrong rotation of the heads is seen.
    tokens = torch.randint(2, narrow.vocab_size, (1, 300), generator=torch.Generator())
    assert furthest(source, target, tokens) < 1e-3


def test_our_engine_says_the_same(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Also when it drafts, with plans of its own."""
    source, target = checkpoints("llama"), tmp_path / "wide"
    widen_checkpoint(source, target, parse_shape("160x10x5x32x432"), lambda *_: None,
                     dtype=torch.float32)  # fmt: skip
    prompts = random_prompts(320, (9, 30, 17))
    config = engine_config(drafting(2), max_num_seqs=2)
    requests = requests_for(prompts, SamplingParams(max_tokens=20))
    found = [decode(load(path), requests, config) for path in (source, target)]
    tokens = [{key: c.token_ids for key, c in done.items()} for done in found]
    assert tokens[0] == tokens[1]
    assert any(c.stats.num_draft_tokens for c in found[1].values())


def test_no_matrix_is_sparse_but_for_pairs_that_turn_otherwise(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    source, target = checkpoints("llama"), tmp_path / "wide"
    assert prepare(source, target, "160x10x10x32x432").exit_code == 0
    wide = load_weights(target, read_model_config(target), torch.float32, "cpu")
    assert torch.equal(wide.norm, torch.ones(160)) and wide.head is not wide.embed
    for layer in wide.layers:
        queries, keys, values = layer.qkv.split(10 * 32)
        dense = [wide.embed, wide.head, values, layer.o, layer.gate_up, layer.down]
        assert all((matrix != 0).float().mean() > 0.999 for matrix in dense)
        for rows in (queries, keys):  # 16 of 32 dimensions of a head
            assert (rows != 0).any(dim=1).view(10, 32).sum(dim=1).tolist() == [16] * 10


def test_what_was_interrupted_is_gone_on_with(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, whole, target = checkpoints("llama"), tmp_path / "whole", tmp_path / "wide"
    shape = "96x6x2x32x288"
    assert prepare(source, whole, shape).exit_code == 0
    save, saved = widened._save, list[str]()

    def interrupted(file: Path, tensors: dict[str, torch.Tensor]) -> None:
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(file.name)
        save(file, tensors)

    monkeypatch.setattr(widened, "_save", interrupted)
    assert prepare(source, target, shape).exit_code == 130
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor"):
        load_weights(target, read_model_config(whole), torch.float32, "cpu")
    monkeypatch.setattr(widened, "_save", save)
    again = prepare(source, target, "192x6x2x32x288")
    assert again.exit_code == 2 and "--output is" in again.output
    assert prepare(source, target, shape).exit_code == 0
    for file in sorted(whole.glob("*.safetensors")):
        with safe_open(file, "pt") as one, safe_open(target / file.name, "pt") as other:
            for name in one.keys():  # noqa: SIM118
                assert torch.equal(one.get_tensor(name), other.get_tensor(name))


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("llama", "32x4x2x16x144", "hidden_size of the wide shape is 32: it must be at least"),
        ("llama", "64x4x2x24x144", "head_dim of the wide shape is 24: it must be a multiple"),
        ("llama", "64x4x4x16x100", "intermediate_size of the wide shape is 100"),
        ("llama", "64x5x4x16x144", "num_kv_heads of the wide shape is 4: it must be a divisor"),
        ("llama-biases", "64x3x3x16x144", "num_heads of the wide shape is 3: it must be more"),
        ("llama-yarn-rope", "64x4x2x48x144", "rotary embedding has other speeds in wider heads"),
        ("qwen3", "64x4x2x32x144", "one that does not normalise its heads"),
        ("llama", "enormous", "--shape is 'enormous': it must be one of llama-2-13b"),
    ],
)
def test_what_cannot_be_done_is_said(
    checkpoints: Checkpoints, tmp_path: Path, name: str, shape: str, said: str
) -> None:
    done = prepare(checkpoints(name), tmp_path / "wide", shape)
    assert done.exit_code == 2 and said in done.output, done.output
    assert not (tmp_path / "wide").exists()


def test_a_full_disk_is_found_before_anything_is_written(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(widened.shutil, "disk_usage", lambda _: usage)
    done = prepare(checkpoints("llama"), tmp_path / "wide", "96x6x2x32x288")
    assert done.exit_code == 2 and "GB to spare" in done.output
    assert not list((tmp_path / "wide").glob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_model_widened(demo_model_path: Path, tmp_path: Path) -> None:
    """Real weights, twice as wide, heads twice as large: logits within 1e-3 in fp32.

    pytest -m slow tests/jobs/test_widened.py
    """
    target = tmp_path / "wide"
    done = prepare(demo_model_path, target, "1152x18x9x128x3072")
    assert done.exit_code == 0, done.output
    llm = LLM.load(target, dtype="float32", device="cpu")
    tokens = llm.tokenizer.encode("The sea is a great body of salt water. " * 8)
    assert furthest(demo_model_path, target, torch.tensor([tokens])) < 1e-3
    config = json.loads((target / "config.json").read_text())
    assert (config["num_hidden_layers"], config["head_dim"]) == (30, 128)
