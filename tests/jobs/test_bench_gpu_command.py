"""`bench gpu`: what it refuses, what it needs, and all of it on toy sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from jobs.bench.gpu import text
from jobs.bench.gpu.clock import Clock, LeftOutError


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--device", "cpu"), "--device is cpu: it must be cuda for llama-2-13b, or add --tiny"),
        (("--minutes", "0", "--tiny"), "--minutes is 0: it must be above 0"),
        (("--peer-python", "/no/python"), "--peer-python is /no/python"),
        (("--weights", "widened", "--data", "/no/data"), "--data is /no/data: it must be a folder"),
        (("--model", "/no/model"), "--model is /no/model: "),
        (("--tiny", "--shape", "codellama-13b"), "--shape is codellama-13b: --tiny has"),
        (("--weights", "dummy", "--data", "/no/data"), "--data is /no/data: --weights dummy"),
        (("--weights", "dummy", "--folder", "/x"), "--folder is /x: --weights dummy measures no"),
        (("--tiny", "--record", "/no/folder/x.json"), "its folder must exist"),
    ],
)
def test_mistakes_are_told_before_anything_starts(
    admg_batch: Callable[..., Result], given: tuple[str, ...], said: str
) -> None:
    done = admg_batch("bench", "gpu", *given)
    assert done.exit_code == 2 and said in done.output, done.output


def test_no_gpu_is_said(admg_batch: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    done = admg_batch("bench", "gpu")
    assert done.exit_code == 2 and "torch sees no CUDA device here" in done.output


def test_a_model_that_cannot_be_widened_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def widened(seconds: float = 60.0) -> Path:
        clock, folder = Clock(seconds / 60), tmp_path / "wide"
        return text.widened_folder(
            str(tmp_path), "llama-2-13b", folder, "cpu", clock, lambda _: None
        )

    def failing(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 2, "", "widening\nError: model is 'x'")

    def endless(command: list[str], timeout: float, **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", failing)
    with pytest.raises(LeftOutError, match=r"^model is 'x'$"):
        widened()
    monkeypatch.setattr(subprocess, "run", endless)
    with pytest.raises(LeftOutError, match="was not made in 0 s"):
        widened()
    (tmp_path / text.MADE).write_text("{}")
    assert widened() == tmp_path  # it is wide already


@pytest.mark.slow
def test_it_needs_no_cluster_and_no_data_sets() -> None:
    """A machine with a GPU may have torch and transformers, and little of what jobs need.

    A process that imports all of it: `pytest -m slow tests/jobs/test_bench_gpu_command.py`.
    """
    code = """
import sys
for name in ("ray", "datasets", "tomli_w", "rouge_score", "moto"):
    sys.modules[name] = None
import jobs.bench.gpu.command, jobs.cli
import jobs.bench.gpu.harness, jobs.bench.gpu.page, jobs.bench.gpu.record, jobs.bench.gpu.costs
import jobs.bench.show, pipeline.signals, jobs.bench.ours, jobs.widened, jobs.demo_model
from jobs.bench.workloads import load_texts
assert load_texts("demo", None, 4)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_tiny_run_from_end_to_end(tmp_path: Path) -> None:
    """All parts with their own processes, about a minute.

    pytest -m slow tests/jobs/test_bench_gpu_command.py
    """
    command = [sys.executable, "-m", "jobs", "bench", "gpu", "--device", "cpu", "--tiny"]
    command += ["--threads", "1", "--record", "r.json", "--html", "r.html"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout.splitlines()[-1])
    recorded = json.loads((tmp_path / "r.json").read_text())
    assert recorded["command"] and recorded["date"] and recorded["costs"] == content["costs"]
    measured = {c["part"] for c in content["costs"]}
    assert measured >= {"decode", "prefill", "draft", "verify"}
    assert {c["system"] for c in content["text"]["cells"]} == {"plain", "auto", "transformers"}
    assert content["text"]["layers"] == 6 and content["by_cost"]
    assert (tmp_path / "r.html").read_text().count("<svg") == 3
