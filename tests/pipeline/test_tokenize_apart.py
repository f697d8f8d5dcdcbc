"""Tokenize as an actor: the same token ids, in a process that has not loaded torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from admg.config import EngineConfig, SamplingParams
from pipeline.apart import torch_unseen
from pipeline.config import PromptConfig, RunConfig
from pipeline.factory import ModelFactory
from pipeline.prepare import Prepare
from pipeline.run import run
from pipeline.schema import PROMPT_TOKEN_IDS
from pipeline.stages import Tokenize
from tests.pipeline.conftest import write_shards
from tests.pipeline.tokenizing import Spying

TEXTS = ["The sea is wide.", "Zwölf Boxkämpfer jagen Viktor", "\U0001f30a" * 3]
CHAT = PromptConfig(mode="chat", system="Answer briefly.")

# Prints the token ids, and whether torch was loaded, and can be used all the same.
ALONE = f"""
import json, sys
import pyarrow as pa
from admg.config import EngineConfig
from pipeline.apart import TokenizeApart
from pipeline.config import PromptConfig
from pipeline.factory import ModelFactory
from pipeline.prepare import Prepare
chat = PromptConfig(mode="chat", system="Answer briefly.")
rows = Prepare("id", (), chat)(pa.table({{"id": [0, 1, 2], "prompt": {TEXTS!r}}}))
tokenize = TokenizeApart(ModelFactory(sys.argv[1], EngineConfig()), chat, None)
ids = tokenize(rows)["{PROMPT_TOKEN_IDS}"].to_pylist()
loaded = "torch" in sys.modules
import torch
print(json.dumps([ids, loaded, torch.ones(2).sum().item()]))
"""


def test_tokens_are_the_same_and_torch_is_not_loaded(demo_model_path: Path) -> None:
    path = str(demo_model_path)
    rows = Prepare("id", (), CHAT)(pa.table({"id": [0, 1, 2], "prompt": TEXTS}))
    here = Tokenize(ModelFactory(path, EngineConfig()), CHAT, None)(rows)
    alone = subprocess.run(
        [sys.executable, "-c", ALONE, path], capture_output=True, text=True, check=True
    )
    assert "PyTorch was not found" not in alone.stderr
    ids, loaded, total = json.loads(alone.stdout)
    assert ids == here[PROMPT_TOKEN_IDS].to_pylist() and min(map(len, ids)) > 3
    assert (loaded, total) == (False, 2.0)


def test_a_run_s_tokenizers_are_in_processes_without_torch(
    ray_cluster: None, tiny_chat_model: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_chat_model, model)
    write_shards(tmp_path / "in", [{"id": [0, 1], "prompt": ["one", "two"]}])
    config = RunConfig(
        (str(tmp_path / "in"),),
        str(tmp_path / "out"),
        str(model),
        sampling=SamplingParams(max_tokens=2),
        dtype="float32",
    )
    assert run(config, engine_factory=Spying.of(config)).rows_ok == 2
    seen = dict(line.split() for line in (model / "seen").read_text().splitlines())
    seen.pop(str(os.getpid()), None)  # the driver's, which has torch
    assert list(seen.values()) == ["False"]


def test_a_tokenizer_of_another_kind_may_want_torch() -> None:
    code = "import tests.pipeline.tokenizing as t; t.tokenize_with_torch()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_where_torch_is_loaded_already_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    there = sys.modules["torch"]
    with torch_unseen():
        assert sys.modules["torch"] is there
    assert sys.modules["torch"] is there
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setenv("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # else it would be left set
    with pytest.raises(ImportError), torch_unseen():
        import torch  # noqa: F401
    assert "torch" not in sys.modules
