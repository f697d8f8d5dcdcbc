"""Configurations refuse what cannot work, by name, and importing them is light."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from admg.config import DraftConfig, EngineConfig, SamplingParams, Verification
from admg.draft_rules import DropRule
from pipeline.config import PromptConfig, RunConfig
from pipeline.fingerprint import Fingerprint, fingerprint, model_identity

BASE = RunConfig(input=("in",), output="out", model="model")
IDENTITY = {"weights": "w"}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"input": ()}, "input"),
        ({"input": ("",)}, "input"),
        ({"input": "in"}, "input"),
        ({"output": ""}, "output"),
        ({"model": ""}, "model"),
        ({"id_column": ""}, "id_column"),
        ({"keep": ("a", "a")}, "keep"),
        ({"keep": ("id",)}, "keep"),
        ({"actors": 0}, "actors"),
        ({"gpus_per_actor": -1}, "gpus_per_actor"),
        ({"threads": 0}, "threads"),
        ({"dtype": "int8"}, "dtype"),
        ({"rows_per_block": 0}, "rows_per_block"),
        ({"audit": 1.5}, "audit"),
        ({"audit": float("nan")}, "audit"),
    ],
)
def test_run_config_names_the_field(change: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is .*: it must be"):
        replace(BASE, **change)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"column": ""}, "prompt.column"),
        ({"mode": "jinja"}, "prompt.mode"),
        ({"on_long": "drop"}, "prompt.on_long"),
        ({"mode": "template"}, "prompt.template"),
        ({"mode": "raw", "template": "{a}"}, "prompt.mode"),
        ({"mode": "raw", "system": "be brief"}, "prompt.system"),
    ],
)
def test_prompt_config_names_the_field(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is .*: it must be"):
        PromptConfig(**fields)


def test_columns_are_those_of_the_template() -> None:
    prompt = PromptConfig(mode="chat", template="{title}: {text} {title}")
    assert replace(BASE, prompt=prompt, keep=("text", "n")).columns == ("id", "text", "n", "title")


SPEED_ONLY = [
    {"actors": 3},
    {"gpus_per_actor": 1.0},
    {"threads": 1},
    {"rows_per_block": 7},
    {"output": "elsewhere"},
    {"input": ("other",)},
    {"model": "moved"},
    {"audit": 0.5},
    {"engine": EngineConfig(max_num_seqs=3, prefill_tokens=64)},
    {"engine": EngineConfig(draft=DraftConfig(drafter="none"))},
    {"engine": EngineConfig(draft=DraftConfig(draft_tokens=9, drop=DropRule(count=3)))},
]
MEANINGFUL = [
    ({"sampling": SamplingParams(seed=1)}, "sampling.seed was 0 and is now 1"),
    ({"dtype": "float32"}, "dtype was 'auto' and is now 'float32'"),
    ({"keep": ("a",)}, "keep was [] and is now ['a']"),
    ({"prompt": PromptConfig(column="q")}, "prompt.column was 'prompt' and is now 'q'"),
    (
        {"engine": EngineConfig(max_model_len=64)},
        "engine.max_model_len was None and is now 64",
    ),
]


@pytest.mark.parametrize("change", SPEED_ONLY)
def test_speed_alone_leaves_the_fingerprint(change: dict[str, Any]) -> None:
    old, new = fingerprint(BASE, IDENTITY), fingerprint(replace(BASE, **change), IDENTITY)
    assert new.differences(old) == []
    assert new.digest == old.digest


@pytest.mark.parametrize(("change", "difference"), MEANINGFUL)
def test_meaning_changes_the_fingerprint(change: dict[str, Any], difference: str) -> None:
    old, new = fingerprint(BASE, IDENTITY), fingerprint(replace(BASE, **change), IDENTITY)
    assert new.differences(Fingerprint.from_json(old.to_json())) == [difference]
    assert new.digest != old.digest


@pytest.mark.parametrize("kind", ["token", "block"])
def test_drafting_means_something_without_shared_noise(kind: Verification) -> None:
    one = replace(BASE, engine=EngineConfig(draft=DraftConfig(verification=kind)))
    two = replace(BASE, engine=EngineConfig(draft=DraftConfig(verification=kind, draft_tokens=2)))
    differences = fingerprint(two, IDENTITY).differences(fingerprint(one, IDENTITY))
    assert differences == ["draft.draft_tokens was 4 and is now 2"]


def test_model_identity_is_what_is_in_the_folder_and_not_where(tmp_path: Path) -> None:
    def folder(name: str, **files: bytes) -> str:
        path = tmp_path / name
        path.mkdir()
        for file, content in {"config.json": b"{}", "model.safetensors": b"123", **files}.items():
            (path / file).write_bytes(content)
        return str(path)

    first = model_identity(folder("a"))
    assert model_identity(folder("b")) == first
    changed = {
        "config": model_identity(folder("c", **{"config.json": b"{ }"})),
        "weights": model_identity(folder("d", **{"model.safetensors": b"1234"})),
        "tokenizer": model_identity(folder("e", **{"tokenizer.json": b"x"})),
        "generation_config": model_identity(folder("f", **{"generation_config.json": b"{}"})),
    }
    weights = bytearray(10**6)
    before = model_identity(folder("g", **{"model.safetensors": bytes(weights)}))
    weights[-1] = 1
    after = model_identity(folder("h", **{"model.safetensors": bytes(weights)}))
    assert before["weights"] != after["weights"] != first["weights"]
    for name, identity in changed.items():
        assert [n for n in first if identity[n] != first[n]] == [name]
    with pytest.raises(ValueError, match=r"^model is .*nowhere': it must be a folder"):
        model_identity(str(tmp_path / "nowhere"))


def test_importing_the_configuration_is_light() -> None:
    """Command lines import it for their help, so it must not pull in what takes a second."""
    code = (
        "import sys, pipeline.config, pipeline.prompts, pipeline.factory;"
        "print([m for m in ('ray', 'torch', 'pyarrow', 'numpy', 'transformers') "
        "if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
