"""The entry for people without Ray: folders, tokenizers, prompts as text or as ids."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from admg.config import EngineConfig, SamplingParams
from admg.families import read_model_config
from admg.kv_arena import bytes_per_slot
from admg.llm import LLM, check_checkpoint, longest_sequence
from tests.admg.decoding import decode, drafting, engine_config, load, requests_for

VOCAB_SIZE = 320
WORDS = ["<s>", "</s>", *(f"w{i}" for i in range(2, VOCAB_SIZE))]
TEXTS = ["w17 w5 w300", "w9", " ".join(f"w{i}" for i in range(20, 60)), "w8 </s> w7"]
IDS = [[17, 5, 300], [9], [*range(20, 60)], [8, 1, 7]]


@pytest.fixture(scope="module")
def folder(llama_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama with a tokenizer of one word a token."""
    folder = tmp_path_factory.mktemp("llm") / "model"
    shutil.copytree(llama_checkpoint, folder)
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<s>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    config = EngineConfig(max_num_seqs=2, draft=drafting(2), check=True)
    return LLM.load(folder, engine=config, dtype="float32", device="cpu")


def test_texts_and_ids_are_the_same_prompts(llm: LLM, folder: Path) -> None:
    assert [llm.tokenizer.encode(text) for text in TEXTS] == IDS
    sampling = SamplingParams(max_tokens=12)
    by_text = {c.key: c for c in llm.generate(TEXTS, sampling)}
    by_ids = {c.key: c for c in llm.generate(IDS, sampling)}
    plain = decode(load(folder), requests_for(IDS, sampling), engine_config(), eos_token_ids=[1])
    assert sorted(by_text) == ["0", "1", "2", "3"]
    for key, completion in plain.items():
        assert by_text[key].token_ids == by_ids[key].token_ids == completion.token_ids
        expected = llm.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        assert by_text[key].text == by_ids[key].text == expected
    assert by_text["2"].stats.prompt_tokens == 40


def test_stop_strings_stop_texts(llm: LLM) -> None:
    sampling = SamplingParams(max_tokens=12)
    (whole,) = llm.generate([TEXTS[0]], sampling)
    words = llm.tokenizer.convert_ids_to_tokens(whole.token_ids)
    stop = words[4]
    (cut,) = llm.generate([TEXTS[0]], SamplingParams(max_tokens=12, stop=(stop,)))
    first = words.index(stop)
    assert cut.finish_reason == "stop" and cut.token_ids == whole.token_ids[: first + 1]
    assert cut.text == whole.text[: whole.text.index(stop)]


def test_completions_come_as_they_finish(llm: LLM) -> None:
    """The first one is there while the rest has not been decoded."""
    completions = llm.generate(IDS, SamplingParams(max_tokens=20))
    assert iter(completions) is completions
    next(completions)
    assert llm.engine.has_work
    assert len(list(completions)) == 3 and not llm.engine.has_work


def test_defaults(folder: Path) -> None:
    llm = LLM.load(folder)
    (completion,) = llm.generate([TEXTS[1]])
    assert 1 <= completion.stats.completion_tokens <= SamplingParams().max_tokens
    assert completion.stats.num_draft_tokens > 0 or completion.stats.completion_tokens < 3


def test_a_bad_prompt_is_a_completion(llm: LLM) -> None:
    done = {c.key: c for c in llm.generate(["", "w5"], SamplingParams(max_tokens=3))}
    assert done["0"].error_code == "prompt_empty" and done["1"].finish_reason == "length"


def test_values_that_cannot_be_served(folder: Path) -> None:
    with pytest.raises(ValueError, match="float8"):
        LLM.load(folder, dtype="float8")
    with pytest.raises(ValueError, match="max_model_len"):
        LLM.load(folder, engine=EngineConfig(max_model_len=1000))


@pytest.mark.parametrize(("dtype", "expected"), [("float32", torch.float32), ("bfloat16", None)])
def test_dtypes(folder: Path, dtype: str, expected: torch.dtype | None) -> None:
    llm = LLM.load(folder, dtype=dtype, device="cpu")
    assert llm.engine._model.dtype == (expected or torch.bfloat16)
    (completion,) = llm.generate([IDS[2]], SamplingParams(max_tokens=10))
    assert len(completion.token_ids) == 10 or completion.finish_reason == "stop"


def test_checking_a_checkpoint_reads_no_weights(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copy(checkpoints("mistral") / "config.json", tmp_path)
    config = check_checkpoint(tmp_path)
    assert (config.vocab_size, config.num_layers) == (512, 3)
    assert config.max_position_embeddings == 512


def test_what_is_no_checkpoint_is_refused_in_one_sentence(tmp_path: Path) -> None:
    for content in (None, "not json", "{}", '{"model_type": "gpt2"}'):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError) as error:
            check_checkpoint(tmp_path)
        assert str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError):
        check_checkpoint(tmp_path / "nowhere")


def test_a_kv_budget_that_holds_no_sequence_is_refused_before_weights_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("the weights are read")

    monkeypatch.setattr("admg.model.load_weights", read)
    config = read_model_config(folder)
    per_token = bytes_per_slot(config, torch.float32)
    tight = EngineConfig(kv_budget_bytes=64 * per_token, max_model_len=65)
    message = f"kv_budget_bytes is {64 * per_token}: it must be at least {128 * per_token} .* 65 "
    with pytest.raises(ValueError, match=message):
        LLM.load(folder, engine=tight, dtype="float32")
    with pytest.raises(ValueError, match=message):
        longest_sequence(folder, tight, "float32")
    assert longest_sequence(folder, replace(tight, max_model_len=64), "float32") == 64
    # Without one it is the model's own, never what memory holds: that differs between machines.
    own = config.max_position_embeddings
    message = f"for one sequence of {own} tokens, .* or set max_model_len to 64 or less: it is part"
    for refuses in (LLM.load, longest_sequence):
        with pytest.raises(ValueError, match=message):
            refuses(folder, engine=replace(tight, max_model_len=None), dtype="float32")
    assert longest_sequence(folder, EngineConfig()) == config.max_position_embeddings
