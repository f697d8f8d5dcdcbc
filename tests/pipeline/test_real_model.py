"""The default engine factory: a tiny real checkpoint through the whole data plane."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from admg.config import DraftConfig, DropRule, EngineConfig, SamplingParams
from admg.request import Request
from pipeline.config import PromptConfig, RunConfig
from pipeline.factory import ModelFactory
from pipeline.run import run
from tests.pipeline.conftest import write_shards

CHAT = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}|{% endfor %}a:"


@pytest.fixture(scope="module")
def checkpoint(llama_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama with a tokenizer of single bytes and a chat template."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(llama_checkpoint, folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1} | {c: i + 2 for i, c in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=CHAT
    ).save_pretrained(folder)
    return folder


@pytest.mark.usefixtures("ray_cluster")
def test_a_completion_depends_on_its_row_alone(checkpoint: Path, tmp_path: Path) -> None:
    """Drafting in shuffled blocks gives what plain decoding of each row by itself gives."""
    ids = [f"row {i}" for i in range(12)]
    texts = ["tell me about " + "the sea and " * (i % 5) + str(i) for i in range(12)]
    shard = pa.table({"id": ids, "prompt": texts})
    write_shards(tmp_path / "in", [shard.slice(0, 5), shard.slice(5)])
    sampling = SamplingParams(max_tokens=24, temperature=1.0, top_p=0.95, seed=11)
    drafting = DraftConfig(draft_tokens=3, drop=DropRule(count=2))
    config = RunConfig(
        input=(str(tmp_path / "in"),),
        output=str(tmp_path / "out"),
        model=str(checkpoint),
        dtype="float32",
        prompt=PromptConfig(mode="chat"),
        sampling=sampling,
        engine=EngineConfig(max_num_seqs=3, draft=drafting),
        rows_per_block=4,
    )
    report = run(config)
    assert (report.rows_ok, report.rows_error) == (12, 0)
    assert report.mean_acceptance_length is not None

    rows = {row["id"]: row for row in pq.read_table(config.output).to_pylist()}
    plain = replace(config.engine, max_num_seqs=1, draft=DraftConfig(drafter="none"))
    factory = ModelFactory(str(checkpoint), plain, "float32")
    engine, tokenizer = factory.build(), factory.tokenizer()
    for row_id, text in zip(ids, texts, strict=True):
        (prompt,) = tokenizer.encode([f"u:{text}|a:"], special=False)
        engine.submit(Request(prompt, sampling, rows[row_id]["row_key"].hex()))
        while engine.has_work:
            for completion in engine.step():
                assert completion.text == rows[row_id]["completion"]
    assert len({row["completion"] for row in rows.values()}) > 1


def test_models_that_cannot_be_served_are_refused_before_loading(checkpoint: Path) -> None:
    assert ModelFactory(str(checkpoint), EngineConfig()).check() == 512
    assert ModelFactory(str(checkpoint), EngineConfig(max_model_len=99)).check() == 99
    with pytest.raises(ValueError, match=r"max_model_len is 513: it must be at most"):
        ModelFactory(str(checkpoint), EngineConfig(max_model_len=513)).check()
    with pytest.raises(ValueError):
        ModelFactory(str(checkpoint / "nowhere"), EngineConfig()).check()
