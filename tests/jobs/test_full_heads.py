"""`admg-batch prepare full-heads`: the same function with more KV heads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from admg.families import read_model_config
from jobs.cli import main
from tests.admg.decoding import load, load_oracle


@pytest.mark.parametrize("name", ["llama", "llama3-rope-sharded", "qwen2"])
def test_it_computes_the_same(
    checkpoints: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    source, target = checkpoints(name), tmp_path / "full"
    done = CliRunner().invoke(main, ["prepare", "full-heads", str(source), "--output", str(target)])
    assert done.exit_code == 0, done.output
    before, after = read_model_config(source), read_model_config(target)
    assert before.num_kv_heads < after.num_kv_heads == after.num_heads
    tokens = torch.arange(2, 30)[None]
    with torch.inference_mode():
        one, other = load_oracle(source)(tokens).logits, load_oracle(target)(tokens).logits
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert load(target).config.num_kv_heads == after.num_heads


def test_what_cannot_be_done_is_said(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    full = checkpoints("llama-ungrouped-tied")
    run = CliRunner().invoke
    done = run(main, ["prepare", "full-heads", str(full), "--output", str(tmp_path / "new")])
    assert done.exit_code == 2 and "KV head for every query head already" in done.output
    (tmp_path / "there").write_text("")
    grouped = str(checkpoints("llama"))
    done = run(main, ["prepare", "full-heads", grouped, "--output", str(tmp_path)])
    assert done.exit_code == 2 and "--output is" in done.output
