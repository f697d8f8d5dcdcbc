"""What a benchmark run is asked to do: values, checked where they are made."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path

from jobs.bench.systems import PLAIN, System
from jobs.whole_file import check_folder
from pipeline.machine import usable_cores

MAX_BATCH = 1024


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the grid: what every system is timed on."""

    workload: str
    batch: int
    temperature: float

    def __str__(self) -> str:
        return f"{self.workload}, batch {self.batch}, temperature {self.temperature:g}"


@dataclass(frozen=True, slots=True)
class Settings:
    """A benchmark run.

    `systems` always begin with plain decoding, the baseline of every ratio.

    Raises:
        ValueError: a value outside its range, by the name of its option.
    """

    systems: tuple[System, ...]
    workloads: tuple[str, ...]
    batches: tuple[int, ...]
    temperatures: tuple[float, ...]
    prompts: int
    max_tokens: int
    repeats: int
    dtype: str
    model: str
    threads: int
    data: Path | None = None
    peer_python: str | None = None
    record: Path | None = None

    def __post_init__(self) -> None:
        for batch in self.batches:
            _check(f"--batch is {batch}", 1 <= batch <= MAX_BATCH, f"between 1 and {MAX_BATCH}")
        for value in self.temperatures:
            _check(f"--temperature is {value:g}", 0 <= value < 100, "0 (greedy) or above")
        _check(f"--prompts is {self.prompts}", self.prompts >= 1, "at least 1")
        _check(f"--max-tokens is {self.max_tokens}", self.max_tokens >= 2, "at least 2")
        _check(f"--repeats is {self.repeats}", self.repeats >= 1, "at least 1")
        cores = usable_cores()
        _check(f"--threads is {self.threads}", 1 <= self.threads <= cores, f"1 to {cores}")
        check_folder("--record", self.record)
        names = [s.name for s in self.systems]
        assert names[0] == PLAIN and len(set(names)) == len(names)

    @property
    def cells(self) -> list[Cell]:
        """The grid, workload by workload."""
        return [Cell(*c) for c in product(self.workloads, self.batches, self.temperatures)]


def _check(what: str, good: bool, right: str) -> None:
    if not good:
        raise ValueError(f"{what}: it must be {right}")
