"""A night as it happens: processes, the real demo model, one of them killed at its work.

pytest -m slow tests/jobs/test_nightly_end_to_end.py
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

COMMAND = str(Path(sys.executable).with_name("admg-batch"))
DAY = "date=2026-11-20"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("demo_model_path"),
]

JOB = """
input = "in"
output = "out"
model = "demo"
[summary]
text_column = "prompt"
part_tokens = 300
[sampling]
max_tokens = 24
[engine]
rows_per_block = 2
max_num_seqs = 4
"""


def call(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *args], cwd=folder, capture_output=True, text=True, timeout=600, check=False
    )


def test_a_night_is_killed_and_the_next_tick_ends_it(tmp_path: Path) -> None:
    prepare = ("prepare", "demo", "--output", f"in/{DAY}", "--limit", "12", "--max-chars", "1600")
    assert call(tmp_path, *prepare).returncode == 0
    ids = pq.read_table(tmp_path / "in" / DAY)["id"].to_pylist()
    (tmp_path / "nightly.toml").write_text(JOB)
    tick = ("nightly", "--config", "nightly.toml", "--date", "2026-11-20")

    ahead = call(tmp_path, *tick, "--dry-run")
    assert ahead.returncode == 0, ahead.stderr
    assert "12 documents, 12 without a summary" in ahead.stdout
    assert "All that is left: about" in ahead.stdout
    assert not (tmp_path / "out").exists()

    # A session of its own: its Ray goes down with it.
    process = subprocess.Popen(
        [COMMAND, *tick], cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while not list((tmp_path / "out").rglob("part*/*.parquet")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    kept = {f: f.stat().st_mtime_ns for f in (tmp_path / "out").rglob("*.parquet")}
    assert kept and not (tmp_path / "out" / DAY / "_SUCCESS").exists()

    done = call(tmp_path, *tick)
    assert done.returncode == 0, done.stderr
    assert f"{DAY}: summaries: 12 ok, 0 error" in done.stdout
    table = pq.read_table(tmp_path / "out" / DAY)
    assert sorted(table["id"].to_pylist()) == sorted(ids)
    assert max(table["document_parts"].to_pylist()) > 1
    assert set(table["document_parts_failed"].to_pylist()) == {0}
    assert all(text.strip() for text in table["completion"].to_pylist())

    quality = json.loads((tmp_path / "out" / DAY / "_admg" / "quality.json").read_text())
    assert quality["looked_at"] == 12 and 0 <= quality["copy_rate"] <= 1
    assert quality["stages"]["parts-1"]["rows_ok"] == sum(
        n for n in table["document_parts"].to_pylist() if n > 1
    )
    again = call(tmp_path, *tick)
    assert (again.returncode, again.stdout) == (0, f"{DAY}: nothing new\n")
    for output in (f"out/{DAY}", f"out/.stages/{DAY}/parts-1"):
        report = json.loads(call(tmp_path, "report", output, "--json").stdout)
        assert report["complete"] and report["rows_error"] == 0
