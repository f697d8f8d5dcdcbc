"""Random kills of a run's processes, driver and actors, until the run is through.

A program of its own, for a test cannot kill the process that it runs in:

    python -m tests.pipeline.faults.soak FOLDER --rows 2000 --kills 50 --every 3
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from pipeline.config import RunConfig
from tests.pipeline.faults.oracle import config_of, prompts
from tests.pipeline.faults.processes import ROOT
from tests.pipeline.standin import StandIn

DRIVER = "tests.pipeline.faults.soak"


def config(folder: Path, rows: int) -> RunConfig:
    """The job: also what the driver runs."""
    return config_of(folder, prompts(rows), shards=8, actors=2, rows_per_block=max(8, rows // 500))


def drive(folder: Path, rows: int, step: float) -> None:
    """The driver's whole program: the same command again and again, until it succeeds."""
    from pipeline.lease import LeaseTimes
    from pipeline.run import run

    run(
        config(folder, rows),
        engine_factory=StandIn(step_seconds=step),
        lease_times=LeaseTimes(1.0, 5.0),
    )


def children(pid: int) -> list[int]:
    """All descendants of a process."""
    found: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue  # it has ended meanwhile
            found.setdefault(parent, []).append(int(entry.name))
    todo, all_of_them = [pid], []
    while todo:
        mine = found.get(todo.pop(), [])
        all_of_them += mine
        todo += mine
    return all_of_them


def decoders(pid: int) -> list[int]:
    """The Decode actors below a driver: Ray writes their name over their command line."""
    named = []
    for child in children(pid):
        try:
            words = Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue
        if b"MapBatches(Decode)" in words:
            named.append(child)
    return named


def memory(pid: int) -> int:
    """Resident MiB of one process."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


class Soak:
    """The killer, with its record."""

    def __init__(self, folder: Path, rows: int, step: float, driver_share: float) -> None:
        self.folder, self.rows, self.step = folder, rows, step
        self._share = driver_share
        self._random = random.Random(7)
        self.record: dict[str, Any] = {"drivers": 0, "actors": 0, "starts": 0, "memory": []}
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self.record["starts"] += 1
        words = [sys.executable, "-m", DRIVER, str(self.folder), "--rows", str(self.rows)]
        with open(self.folder / "driver.log", "ab") as log:
            return subprocess.Popen(
                [*words, "--step", str(self.step), "--drive"],
                cwd=ROOT,
                start_new_session=True,
                stdout=log,
                stderr=log,
            )

    def _end_all(self) -> None:
        below = children(self._process.pid)
        for pid in (self._process.pid, *below):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait()

    def kill_one(self) -> bool:
        """Kill the driver with all that belongs to it, or one actor; False: there was none."""
        working = decoders(self._process.pid)
        if not working:
            return False
        if self._random.random() < self._share:
            self._end_all()
            self.record["drivers"] += 1
            self._process = self._start()
        else:
            os.kill(self._random.choice(working), signal.SIGKILL)
            self.record["actors"] += 1
        return True

    def run(self, kills: int, every: float) -> int:
        """Kill so often, about every so many seconds; then let it end. The exit code."""
        started = time.monotonic()
        next_kill = time.monotonic() + every
        while True:
            code = self._process.poll()
            done = self.record["drivers"] + self.record["actors"]
            if code == 0 or (code is not None and self.record["starts"] > 4 * kills + 4):
                break
            if code is not None:
                self._process = self._start()
            if done < kills and time.monotonic() >= next_kill and self.kill_one():
                next_kill = time.monotonic() + every * self._random.uniform(0.5, 1.5)
            seconds = round(time.monotonic() - started)
            self.record["memory"].append((seconds, memory(self._process.pid)))
            time.sleep(0.5)
        self.record["seconds"] = round(time.monotonic() - started)
        self._end_all()
        return code


def by_quarter(memory: list[tuple[int, int]]) -> list[int]:
    """The median of the driver's resident memory in each quarter of the time, in MiB."""
    known = [size for _, size in memory if size]
    parts = [known[i * len(known) // 4 : (i + 1) * len(known) // 4] for i in range(4)]
    return [round(median(part)) for part in parts if part]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--every", type=float, default=3.0)
    parser.add_argument("--step", type=float, default=0.02)
    parser.add_argument("--drivers", type=float, default=0.3, help="share of kills")
    parser.add_argument("--record", type=Path, help="a JSON file for what came of it")
    parser.add_argument("--drive", action="store_true")
    given = parser.parse_args()
    if given.drive:
        drive(given.folder, given.rows, given.step)
        return 0
    given.folder.mkdir(parents=True, exist_ok=True)
    config(given.folder, given.rows)
    soak = Soak(given.folder, given.rows, given.step, given.drivers)
    code = soak.run(given.kills, given.every)
    (given.folder / "record.json").write_text(json.dumps(soak.record))
    shown = {k: v for k, v in soak.record.items() if k != "memory"}
    shown |= {"driver_mebibytes": by_quarter(soak.record["memory"])}
    print(json.dumps({"exit_code": code, **shown}))
    if given.record is not None:
        from jobs.bench.machine import commit  # with torch, which the driver should do without

        about = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit()}
        sizes = {k: v for k, v in vars(given).items() if k not in ("folder", "record", "drive")}
        record = {"program": DRIVER, **sizes, **about, "exit_code": code, **shown}
        given.record.write_text(json.dumps(record, indent=1) + "\n")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
