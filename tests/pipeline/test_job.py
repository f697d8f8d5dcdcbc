"""What a job takes over from an output that it goes on with, and what is the same job."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from admg.config import EngineConfig, SamplingParams
from pipeline import job as module
from pipeline.config import PromptConfig, RunConfig
from pipeline.factory import ModelFactory
from pipeline.job import Job, check_job, settled
from pipeline.keys import row_key
from pipeline.schema import RowResult, result_columns
from pipeline.sink import commit
from tests.pipeline.conftest import CHAT, write_shards

DATED = "today is {{ strftime_now('%d %B %Y') }};" + CHAT


def config_of(tmp_path: Path, model: Path, **changes: Any) -> RunConfig:
    write_shards(tmp_path / "in", [{"id": ["a", "b"], "prompt": ["one", "two"]}])
    base = RunConfig(
        input=(str(tmp_path / "in"),),
        output=str(tmp_path / "out"),
        model=str(model),
        prompt=PromptConfig(mode="chat"),
        sampling=SamplingParams(max_tokens=4),
        dtype="float32",
    )
    return replace(base, **changes)


def checked(config: RunConfig) -> Job:
    return check_job(config, ModelFactory.of(config))


def begin(job: Job) -> None:
    """Commit a row, as a run that ended early does."""
    job.store.prepare()
    columns: dict[str, Any] = dict(result_columns([RowResult(text="x")]))
    columns |= {"id": pa.array(["a"]), "row_key": pa.array([row_key("a", "one")], pa.binary(16))}
    rows = pa.table(columns).select(job.schema.names).cast(job.schema)
    commit(job.store, job.fingerprint, rows)


def with_template(model: Path, folder: Path, template: str) -> Path:
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    return folder


def test_a_template_that_asks_for_the_day_is_told_the_one_on_which_the_output_was_begun(
    tiny_chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, with_template(tiny_chat_model, tmp_path / "dated", DATED))
    monkeypatch.setattr(module, "_today", lambda: "2026-02-28")
    first = checked(config)
    begin(first)
    monkeypatch.setattr(module, "_today", lambda: "2026-03-01")
    second, other = checked(config), checked(replace(config, output=str(tmp_path / "other")))
    message = [{"role": "user", "content": "hello"}]
    said = [job.factory.tokenizer().chat(message) for job in (first, second, other)]
    assert said[0] == said[1] == "today is 28 February 2026;u:hello|a:"
    assert said[2] == "today is 01 March 2026;u:hello|a:"
    assert first.fingerprint.digest == second.fingerprint.digest != other.fingerprint.digest
    assert other.fingerprint.differences(first.fingerprint) == [
        "prompt.date was '2026-02-28' and is now '2026-03-01'"
    ]
    raw = checked(replace(config, prompt=PromptConfig(), output=str(tmp_path / "raw")))
    assert "prompt.date" not in raw.fingerprint.fields


def test_a_template_without_a_date_is_no_matter_of_days(
    tiny_chat_model: Path, tmp_path: Path
) -> None:
    assert "prompt.date" not in checked(config_of(tmp_path, tiny_chat_model)).fingerprint.fields


def test_an_output_without_its_fingerprint_is_refused_by_the_file(
    tiny_chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, tiny_chat_model)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.fingerprint.Fingerprint.to_json", lambda _: "[")
        begin(checked(config))
    with pytest.raises(ValueError, match="was changed by somebody else"):
        checked(config)


def test_the_dtype_that_an_output_was_begun_with_is_that_of_all_its_runs(
    tiny_chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, tiny_chat_model, dtype="auto")
    # On GPUs it is bfloat16, whatever the CPUs of the machine that plans the run are good at.
    monkeypatch.setattr("torch.cpu.get_capabilities", dict)
    kinds = [settled(checked(config), gpus).fingerprint.fields["dtype"] for gpus in (0.0, 1.0)]
    assert kinds == ["float32", "bfloat16"]
    begin(settled(checked(config), 1.0))
    for dtype in ("auto", "bfloat16"):
        job = checked(replace(config, dtype=dtype))
        assert job == settled(job, 0.0)
        assert job.config.dtype == "bfloat16" and isinstance(job.factory, ModelFactory)
        assert job.factory.dtype == "bfloat16"
        begin(job)
    with pytest.raises(ValueError, match="dtype was 'bfloat16' and is now 'float32'"):
        checked(replace(config, dtype="float32"))


def test_the_models_own_length_is_the_same_job_as_none(
    tiny_chat_model: Path, tmp_path: Path
) -> None:
    config = config_of(tmp_path, tiny_chat_model)
    begin(checked(config))
    said = checked(replace(config, engine=EngineConfig(max_model_len=512)))
    assert said.limit == checked(config).limit == 508
    with pytest.raises(ValueError, match="max_model_len was 512 and is now 511"):
        checked(replace(config, engine=EngineConfig(max_model_len=511)))
