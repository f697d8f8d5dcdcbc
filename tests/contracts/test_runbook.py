"""The runbook's rehearsal, executed block by block: a night that dies and comes out whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from tests.ray_head import free_ports

ROOT = Path(__file__).parents[2]
REHEARSAL = re.compile(r"<!-- rehearsal -->\n```bash\n(.*?)^```", re.S | re.M)
NIGHT = "nights/output/date=2026-11-20"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def blocks() -> list[str]:
    return REHEARSAL.findall((ROOT / "deploy" / "README.md").read_text(encoding="utf-8"))


def options(folder: Path) -> dict[str, str]:
    """Options of `ray start` that keep this Ray apart from others, and its ports."""
    gcs, agent, client, dashboard = free_ports(4)
    return {
        "RAY_OPTIONS": f"--node-ip-address=127.0.0.1 --port={gcs} "
        f"--dashboard-agent-listen-port={agent} --ray-client-server-port={client} "
        f"--min-worker-port=0 --max-worker-port=0 --temp-dir={folder} "
        "--object-store-memory=200000000 --num-gpus=0",
        "DASHBOARD_PORT": str(dashboard),
        "GCS_PORT": str(gcs),
    }


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Short, for Ray's sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="book", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def rehearse(place: Path, ray_folder: Path, steps: Sequence[str]) -> str:
    """Run the blocks in one shell in this folder; what they print."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
    env |= options(ray_folder) | {"NO_COLOR": "1"}
    script = "\n".join(f"echo '=== {i}'\n{block}" for i, block in enumerate(steps))
    with (place / "said.log").open("w") as log:
        shell = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=place,
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = shell.wait(timeout=1500)
        finally:
            # Where a block has failed, the head is still there: it is of this shell's group.
            if shell.poll() != 0:
                os.killpg(shell.pid, signal.SIGTERM)
                shell.wait(timeout=60)
    said = (place / "said.log").read_text()
    assert code == 0, said + (place / "ray.log").read_text()
    return said


def test_the_rehearsal_is_all_there() -> None:
    text = "\n".join(blocks())
    for step in ("ray start --head", "prepare demo", "kill -KILL", "--html", 'kill "$head"'):
        assert step in text
    assert text.count("admg-batch submit --nightly") == 3
    done = subprocess.run(["bash", "-n", "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.cluster
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("demo_model_path")
def test_the_rehearsal_ends_as_the_runbook_says(tmp_path: Path, ray_folder: Path) -> None:
    """Five to ten minutes: pytest -m cluster tests/contracts/test_runbook.py"""
    said = rehearse(tmp_path, ray_folder, blocks())
    _, _, twice, killed, resumed, *_ = said.split("=== ")[1:]
    assert "Submitted nightly-2026-11-20" in twice
    assert "Already submitted" in twice and "Nothing was sent" in twice
    assert "running" in killed and "incomplete" in killed
    assert "It goes on from nightly-2026-11-20" in resumed and "which failed" in resumed
    assert "succeeded" in resumed and "finished" in resumed
    prompts = pq.read_table(tmp_path / "nights/input/date=2026-11-20")
    rows = pq.read_table(tmp_path / NIGHT).to_pylist()
    assert len(rows) >= 200
    assert sorted(row["id"] for row in rows) == sorted(prompts["id"].to_pylist())
    assert {row["status"] for row in rows} == {"ok"}
    manifest = json.loads((tmp_path / NIGHT / "_admg/manifest.json").read_text())
    # What the dead driver had committed was not done again.
    assert 0 < manifest["run"]["rows_reused"] < len(rows)
    page = tmp_path / "report.html"
    assert page.stat().st_size > 10_000
    show_in_browser(page, str(len(rows)))


def show_in_browser(page: Path, words: str) -> None:
    """Let a real browser lay the page out, where there is one; the words must be in it.

    The last step of a test, for without a browser it ends there as skipped.
    """
    found = next((b for b in BROWSERS if shutil.which(b)), None)
    if found is None:
        pytest.skip("all but the page in a browser has passed: no chromium is installed")
    command = [found, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000"]
    command += [f"--user-data-dir={page.parent / 'browser'}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "</html>" in done.stdout and words in done.stdout


# The cluster of rayjob.yaml: a head that offers nothing, and GPUs that come when the job is there.
_LATE = """
admg-batch prepare demo --output prompts --limit 6 --max-chars 300
ray job submit --no-wait --submission-id late -- admg-batch run --input "$PWD/prompts" \\
    --output "$PWD/output" --model demo --max-tokens 4 --gpus-per-actor 1
until grep -q '"phase": "starting"' output/_admg/heartbeat.json 2> wait.log; do sleep 1; done
ray start --address="127.0.0.1:$GCS_PORT" --node-ip-address=127.0.0.1 --block --num-cpus=4 \\
    --num-gpus=1 --object-store-memory=200000000 > worker.log 2>&1 &
worker=$!
ray job logs --follow late
ray job status late
kill "$worker"
wait "$worker" || true
"""


@pytest.mark.cluster
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("demo_model_path")
def test_a_head_without_cpus_waits_for_gpus_that_come_late(
    tmp_path: Path, ray_folder: Path
) -> None:
    """Two minutes: pytest -m cluster tests/contracts/test_runbook.py -k late"""
    start, *_, end = blocks()
    head = start.replace("--num-cpus=6", "--num-cpus=0")
    assert head != start and "--num-gpus=0" in options(ray_folder)["RAY_OPTIONS"]
    said = rehearse(tmp_path, ray_folder, [head, _LATE, end])
    if torch.cuda.is_available():
        assert "succeeded" in said.lower()
        rows = pq.read_table(tmp_path / "output").to_pylist()
        assert [row["status"] for row in rows] == ["ok"] * 6
    else:  # the GPU that came is one by name; an actor was given it, and says what it found
        assert "failed" in said.lower()
        assert "built without CUDA" in said and "What is committed stays" in said
