"""Models by URI: copied once to each machine, whole or not at all, and used from there."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from admg.config import EngineConfig, SamplingParams
from pipeline import weights as module
from pipeline.config import RunConfig
from pipeline.factory import ModelFactory
from pipeline.file_systems import resolve
from pipeline.fingerprint import fingerprint, model_identity
from pipeline.job import check_job
from pipeline.run import run
from pipeline.weights import RemoteCheckpoint
from tests.pipeline.conftest import write_shards
from tests.pipeline.s3 import BUCKET, S3Server

_COPIES = """
import os, sys
from pathlib import Path
from pipeline.weights import RemoteCheckpoint
found = RemoteCheckpoint.find(sys.argv[1])
copy = RemoteCheckpoint._copy
def counted(self, scratch, weights):
    with open(os.environ["LOG"], "a") as log:
        log.write("copied\\n")
    return copy(self, scratch, weights)
RemoteCheckpoint._copy = counted
print("ready", flush=True)
sys.stdin.readline()
print(found.folder())
"""
_HANGS = """
import os, sys, time
from pipeline.weights import RemoteCheckpoint
def hang(self, name, made):
    (made / name).write_bytes(b"half")
    os.write(1, b"hangs\\n")  # at once: several threads come here together
    time.sleep(600)
RemoteCheckpoint._copy_file = hang
RemoteCheckpoint.find(sys.argv[1]).folder()
"""


def upload(folder: Path, uri: str) -> str:
    filesystem, root = resolve(uri)
    filesystem.create_dir(root, recursive=True)
    for file in folder.iterdir():
        with filesystem.open_output_stream(f"{root}/{file.name}") as stream:
            stream.write(file.read_bytes())
    return uri


@pytest.fixture
def memory() -> Iterator[str]:
    """A URI of storage that lives in this process, reached through fsspec."""
    yield "memory://models/tiny"
    fsspec.filesystem("memory").rm("/models", recursive=True)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADMG_BATCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def started(script: str, uri: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, uri],
        env=os.environ | env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_processes_that_race_copy_a_model_once(
    s3: S3Server, tiny_chat_model: Path, tmp_path: Path, cache: Path
) -> None:
    (tiny_chat_model / "modeling_evil.py").write_text("raise SystemExit")
    uri = upload(tiny_chat_model, f"s3://{BUCKET}/models/raced")
    (tiny_chat_model / "modeling_evil.py").unlink()
    racing = [started(_COPIES, uri, LOG=str(tmp_path / "log")) for _ in range(4)]
    for process in racing:  # all have imported everything before any may start
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in racing:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    folders = {process.communicate(timeout=90)[0].strip() for process in racing}
    assert len(folders) == 1 and [p.returncode for p in racing] == [0] * 4
    assert (tmp_path / "log").read_text() == "copied\n"
    folder = Path(folders.pop())
    assert folder.parent == cache and folder.name.startswith("raced-")
    # Byte by byte the same, without the code.
    names = {f.name for f in folder.iterdir()}
    assert names == {f.name for f in tiny_chat_model.iterdir()}
    assert all((folder / n).read_bytes() == (tiny_chat_model / n).read_bytes() for n in names)


def test_a_copy_that_was_killed_is_made_again(
    s3: S3Server, tiny_chat_model: Path, cache: Path
) -> None:
    uri = upload(tiny_chat_model, f"s3://{BUCKET}/models/killed")
    process = started(_HANGS, uri)
    assert process.stdout is not None and process.stdout.readline() == "hangs\n"
    found = RemoteCheckpoint.find(uri)
    assert not (cache / found._folder_name()).exists()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    folder = found.folder()
    assert model_identity(str(folder)) == model_identity(str(tiny_chat_model))
    assert {f.name for f in cache.iterdir()} == {folder.name, f".{folder.name}.lock"}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_with_a_model_in_a_bucket_goes_on_with_the_same_model_in_a_folder(
    s3: S3Server, tiny_chat_model: Path, tmp_path: Path, cache: Path
) -> None:
    uri = upload(tiny_chat_model, f"s3://{BUCKET}/models/tiny")
    write_shards(tmp_path / "in", [{"id": [1, 2], "prompt": ["The sea", "The sky"]}])
    config = RunConfig(
        input=(str(tmp_path / "in"),),
        output=str(tmp_path / "out"),
        model=uri,
        sampling=SamplingParams(max_tokens=4),
        engine=EngineConfig(max_num_seqs=2, kv_budget_bytes=2**24),
        dtype="float32",
    )
    assert run(config).rows_ok == 2
    # This process planned: it needed neither the weights nor the actors' copy, which is elsewhere.
    copied = [f for f in cache.iterdir() if f.is_dir()]
    assert [f.name.rsplit("-", 1)[-1] for f in copied] == ["small"]
    assert not list(copied[0].glob("*.safetensors"))
    # The same model in a folder may go on here, and another one may not.
    here = replace(config, model=str(tiny_chat_model))
    check_job(here, ModelFactory.of(here))
    with pytest.raises(ValueError, match=r"dtype was 'float32' and is now 'bfloat16'"):
        check_job(replace(here, dtype="bfloat16"), ModelFactory.of(here))


def test_a_model_is_known_by_its_files_and_not_by_where_they_lie(
    memory: str, tiny_chat_model: Path, tmp_path: Path
) -> None:
    config = RunConfig(input=("in",), output="out", model=upload(tiny_chat_model, memory))
    here = replace(config, model=tiny_chat_model.as_uri())
    identities = [ModelFactory.of(c).identity() for c in (config, here)]
    assert identities[0] == identities[1] == model_identity(str(tiny_chat_model))
    assert fingerprint(config, identities[0]).digest == fingerprint(here, identities[1]).digest
    tuned = shutil.copytree(tiny_chat_model, tmp_path / "tuned")
    file = next(tuned.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-8] ^= 1
    file.write_bytes(content)
    first = RemoteCheckpoint.find(memory).folder()
    upload(tuned, memory)  # under the same names, with the same sizes
    assert ModelFactory.of(config).identity() != identities[0]
    second = RemoteCheckpoint.find(memory).folder()
    assert model_identity(str(first)) == identities[0]
    assert model_identity(str(second)) == model_identity(str(tuned))


def test_other_files_under_the_same_uri_are_another_copy(
    memory: str, tiny_chat_model: Path
) -> None:
    first = RemoteCheckpoint.find(upload(tiny_chat_model, memory)).folder(weights=False)
    filesystem, root = resolve(memory)
    with filesystem.open_output_stream(f"{root}/extra.json") as stream:
        stream.write(b"{}")
    second = RemoteCheckpoint.find(memory).folder(weights=False)
    assert first != second and first.is_dir() and (second / "extra.json").is_file()


def test_a_listing_travels_to_other_machines_without_showing_its_credentials(
    memory: str, tiny_chat_model: Path
) -> None:
    upload(tiny_chat_model, memory)
    found = replace(RemoteCheckpoint.find(memory), uri="s3://key:hushhush@bucket/x")
    assert pickle.loads(pickle.dumps(found)) == found
    assert "hushhush" not in repr(found)


def test_files_that_change_under_the_copy_are_refused(
    memory: str, tiny_chat_model: Path, cache: Path
) -> None:
    found = RemoteCheckpoint.find(upload(tiny_chat_model, memory))
    filesystem, root = resolve(memory)
    with filesystem.open_output_stream(f"{root}/config.json") as stream:
        stream.write(b"{}")
    with pytest.raises(ValueError, match=r"config\.json has another size"):
        found.folder()
    upload(tiny_chat_model, memory)
    other = replace(found, identity=dict(found.identity) | {"weights": "of another training"})
    with pytest.raises(ValueError, match="changed while they were copied"):
        other.folder()
    assert not [f for f in cache.iterdir() if f.is_dir()]


def test_a_disk_without_room_is_named_before_it_is_filled(
    memory: str, tiny_chat_model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = RemoteCheckpoint.find(upload(tiny_chat_model, memory))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage(100, 90, 10))
    with pytest.raises(OSError, match="set ADMG_BATCH_CACHE to a folder with more room"):
        found.folder()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "cannot be read|config.json"),
        ({"model.safetensors": b""}, "it must be a folder with a config.json"),
        ({"config.json": b"{}", "x.bin": b""}, "must hold safetensors files, and holds none but x"),
        ({"config.json": b"{}"}, "must hold safetensors files, and holds none$"),
    ],
)
def test_what_is_no_checkpoint_is_refused(
    files: dict[str, bytes], words: str, tmp_path: Path, memory: str
) -> None:
    for name, content in files.items():
        (tmp_path / "made").mkdir(exist_ok=True)
        (tmp_path / "made" / name).write_bytes(content)
    filesystem, root = resolve(memory)
    filesystem.create_dir(root, recursive=True)
    if files:
        upload(tmp_path / "made", memory)
    with pytest.raises(ValueError, match=words):
        RemoteCheckpoint.find(memory)


def test_the_hub_is_not_asked_where_it_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set, so it must be a folder"):
        RemoteCheckpoint.find("hf://some/model")


def test_pickled_weights_in_a_folder_are_refused_before_anything_starts(
    tiny_chat_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_chat_model, tmp_path / "pickled")
    next(folder.glob("*.safetensors")).rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pickled weights \(pytorch_model\.bin\)"):
        ModelFactory(str(folder), EngineConfig()).check()


def test_a_name_on_the_hub_is_no_folder_and_the_message_says_what_to_write() -> None:
    with pytest.raises(ValueError, match=r"as s3://bucket/folder or hf://organisation/name$"):
        ModelFactory("meta-llama/Llama-2-13b-hf", EngineConfig()).check()


def test_code_in_a_checkpoint_is_never_run(tiny_chat_model: Path, tmp_path: Path) -> None:
    """`trust_remote_code` is off: classes that a checkpoint names in its own files are not made."""
    folder = shutil.copytree(tiny_chat_model, tmp_path / "coded")
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: ...\n")
    for name, key in (("config.json", "AutoConfig"), ("tokenizer_config.json", "AutoTokenizer")):
        content = json.loads((folder / name).read_text())
        own = ["own.Own", None] if key == "AutoTokenizer" else "own.Own"
        content["auto_map"] = {key: own, "AutoModelForCausalLM": "own.Own"}
        (folder / name).write_text(json.dumps(content))
    factory = ModelFactory(
        str(folder), EngineConfig(max_num_seqs=1, kv_budget_bytes=2**24), "float32"
    )
    try:
        factory.check()
        factory.tokenizer()
        factory.build()
    except ValueError as error:  # refusing by name is as good
        assert "auto_map" in str(error)
    assert not (tmp_path / "ran").exists()
