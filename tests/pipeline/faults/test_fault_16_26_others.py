"""Faults 16 and 26: other runs and readers on the same output, while a run is at work."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from jobs.cli import main
from pipeline.config import RunConfig
from pipeline.errors import Locked
from pipeline.lease import LeaseTimes
from pipeline.manifest import MANIFEST, SUCCESS, read_manifest
from pipeline.run import run
from tests.pipeline.conftest import write_shards
from tests.pipeline.faults.killing import committed, started, wait_until
from tests.pipeline.faults.oracle import check_output, config_of, prompts
from tests.pipeline.standin import StandIn, expected

pytestmark = pytest.mark.usefixtures("ray_cluster")
TIMES = LeaseTimes(every=0.2, stale_after=3.0)


@pytest.mark.slow
def test_fault_16_one_run_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run is refused; one that comes when the first is silent takes over for good."""
    table = prompts(64)
    config = config_of(tmp_path, table, rows_per_block=4)
    output = tmp_path / "out"
    slow = StandIn(step_seconds=0.1)
    with started(tmp_path, config, slow, TIMES) as first:
        wait_until(lambda: committed(output) >= 8, first)
        with pytest.raises(Locked, match=rf"locked by .* \(process {first.pid}, since "):
            run(config, engine_factory=StandIn(), lease_times=TIMES)
        monkeypatch.setattr("pipeline.run.run", lambda *_, **__: run_locked(config))
        result = CliRunner().invoke(
            main, ["run", "--input", config.input[0], "--output", config.output, "--model", "m"]
        )
        assert result.exit_code == 4
        assert f"(process {first.pid}, since" in result.output

        first.send_signal(signal.SIGSTOP)
        report = run(config, engine_factory=StandIn(), lease_times=TIMES)
        assert 8 <= report.rows_reused < 64
        check_output(config, table)
        before = sorted(p.name for p in output.glob("*"))
        first.send_signal(signal.SIGCONT)
        words = first.communicate(timeout=60)[0]
    assert first.returncode == 1
    assert "is no longer this run's to write to" in words or "was taken over by another" in words
    assert sorted(p.name for p in output.glob("*")) == before
    check_output(config, table)


def run_locked(config: RunConfig) -> None:
    run(config, engine_factory=StandIn(), lease_times=TIMES)


class Reader:
    """Reads all there is, again and again; `seen` counts what it has found by kind."""

    def __init__(self, config: RunConfig, texts: dict[int, str]) -> None:
        self._config = config
        self._texts = texts
        self._root = Path(config.output)
        self.seen = {"files": 0, "manifests": 0}

    def look(self) -> None:
        finished = (self._root / SUCCESS).exists()
        ids: list[int] = []
        try:
            names = sorted(p.name for p in self._root.glob("*.parquet"))
            for name in names:
                ids += self._ids(name)
                self.seen["files"] += 1
        except FileNotFoundError:
            pass  # replaced by another file since it was listed: the manifest names that one
        else:
            if finished and (self._root / SUCCESS).exists():
                assert len(set(ids)) == len(ids)
        if (self._root / MANIFEST).exists():
            self._look_at_manifest()

    def _look_at_manifest(self) -> None:
        manifest = read_manifest(self._config.output)
        try:
            ids = [i for file in manifest["files"] for i in self._ids(file["name"])]
        except FileNotFoundError:
            assert read_manifest(self._config.output) != manifest
            return
        assert len(set(ids)) == len(ids) == manifest["totals"]["rows"]
        self.seen["manifests"] += 1

    def _ids(self, name: str) -> list[int]:
        table = pq.read_table(self._root / name)
        ids: list[int] = table["id"].to_pylist()
        for i, text in zip(ids, table["completion"].to_pylist(), strict=True):
            assert text == expected(self._texts[i], 12)
        return ids


@contextmanager
def polling(reader: Reader) -> Iterator[None]:
    stop, problems = threading.Event(), []

    def poll() -> None:
        try:
            while not stop.wait(0.03):
                reader.look()
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if problems:
        raise problems[0]


def test_fault_26_a_reader_sees_whole_files_only(tmp_path: Path) -> None:
    """While rows are decoded, added to and merged; the manifest's files hold each row once."""
    table = prompts(64)
    first, rest = table.slice(0, 40), table.slice(40)
    config = config_of(tmp_path, first, rows_per_block=4, max_rows_per_file=25)
    reader = Reader(config, dict(zip(range(64), table["prompt"].to_pylist(), strict=True)))
    with polling(reader):
        run(config, engine_factory=StandIn(step_seconds=0.02))
        check_output(config, first)
        write_shards(tmp_path / "in", [first, pa.table(rest)])
        report = run(config, engine_factory=StandIn(step_seconds=0.02))
        assert report.rows_reused == 40
    check_output(config, table)
    reader.look()
    assert min(reader.seen["files"], reader.seen["manifests"]) > 10
