"""The default engine factory on a tiny real checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from admg.config import DraftConfig, EngineConfig
from admg.draft_rules import DropRule
from pipeline.factory import ModelFactory


def test_models_that_cannot_be_served_are_refused_before_loading(tiny_chat_model: Path) -> None:
    assert ModelFactory(str(tiny_chat_model), EngineConfig()).check() == 512
    assert ModelFactory(str(tiny_chat_model), EngineConfig(max_model_len=99)).check() == 99
    with pytest.raises(ValueError, match=r"max_model_len is 513: it must be at most"):
        ModelFactory(str(tiny_chat_model), EngineConfig(max_model_len=513)).check()
    many = EngineConfig(draft=DraftConfig(drop=DropRule(count=4)))
    with pytest.raises(ValueError, match="drop_layers is 4: it must be at most 3, for the model"):
        ModelFactory(str(tiny_chat_model), many).check()
    long = EngineConfig(max_model_len=16, draft=DraftConfig(draft_tokens=16))
    with pytest.raises(ValueError, match="draft_tokens is 16: it must be below 16, the tokens"):
        ModelFactory(str(tiny_chat_model), long).check()
    with pytest.raises(ValueError, match="nowhere"):
        ModelFactory(str(tiny_chat_model / "nowhere"), EngineConfig()).check()
