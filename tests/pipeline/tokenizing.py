"""Factories that say what their tokenizers find. Imported where torch is not to be loaded."""

from __future__ import annotations

import os
import sys

import pyarrow as pa

from pipeline.apart import TokenizeApart
from pipeline.config import PromptConfig
from pipeline.factory import ModelFactory, TokenizerLike
from pipeline.prepare import Prepare
from pipeline.schema import PROMPT_TOKEN_IDS
from tests.pipeline.standin import ByteTokenizer, StandIn


class Spying(ModelFactory):
    """Notes in which process a tokenizer is made, and whether torch is loaded there."""

    def tokenizer(self) -> TokenizerLike:
        made = ModelFactory.tokenizer(self)
        loaded = sys.modules.get("torch") is not None
        with open(f"{self.path}/seen", "a") as seen:
            seen.write(f"{os.getpid()} {loaded}\n")
        return made


class Wanting(StandIn):
    """Its tokenizer has a use for torch."""

    def tokenizer(self) -> ByteTokenizer:
        import torch

        assert torch.ones(1).item() == 1
        return ByteTokenizer()


def tokenize_with_torch() -> None:
    """In a process of its own."""
    assert "torch" not in sys.modules
    rows = Prepare("id", (), PromptConfig())(pa.table({"id": [0], "prompt": ["a"]}))
    tokenized = TokenizeApart(Wanting(), PromptConfig(), None)(rows)
    assert tokenized[PROMPT_TOKEN_IDS].to_pylist() == [[256, 97]]
