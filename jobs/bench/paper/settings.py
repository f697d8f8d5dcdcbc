"""What a run of the paper's comparison is asked to do: values, checked where they are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jobs.evaluation.tasks import TASKS

# The laws of the published comparison: greedy, and for code T = 0.6 with top-p 0.95.
LAWS: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.6, "top_p": 0.95},
}
SECTIONS = ("main", "control", "ablation", "timed")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything.

    `prompts` of each task are decoded by every system, of which `ablated` by every ablation and
    `timed` with a clock, `repeats` times. `held_out` others are what drafters are calibrated on.
    Plain decoding's completions, whose quality is scored, have up to `whole` tokens by task, those
    of drafters up to `tokens`, in controls and ablations up to `short`. `random_sets` stand
    for choosing at random, `trials` sets are tried by Draft & Verify's search for each task, and
    `swaps` of a layer to make the best fixed set better.
    `levels` are the shares of the attention layers that controls drop.
    """

    prompts: int = 8
    held_out: int = 5
    ablated: int = 4
    timed: int = 3
    repeats: int = 2
    whole: dict[str, int] = field(
        default_factory=lambda: {name: task.max_tokens for name, task in TASKS.items()}
    )
    tokens: dict[str, int] = field(
        default_factory=lambda: {"cnn_dailymail": 64, "xsum": 32, "humaneval": 128}
    )
    short: int = 24
    random_sets: int = 4
    trials: int = 60
    swaps: int = 24
    levels: tuple[float, ...] = (0.25, 0.4)
    every_ablation: bool = True


FULL = Sizes()
QUICK = Sizes(
    prompts=2,
    held_out=2,
    ablated=1,
    timed=1,
    repeats=1,
    whole={"cnn_dailymail": 24, "xsum": 16, "humaneval": 48},
    tokens={"cnn_dailymail": 24, "xsum": 16, "humaneval": 48},
    short=16,
    random_sets=2,
    trials=6,
    swaps=3,
    levels=(0.25,),
    every_ablation=False,
)


@dataclass(frozen=True, slots=True)
class Settings:
    """A run.

    `dtype` is of what is counted, `timed_dtype` of what is timed. `batch` sequences are decoded
    together where things are counted, `timed_batch` where they are timed. `plans` name sets of
    sub-layers by the task that they are for. `run_code` says how the code that models write is kept
    apart where it is tested; None: it is not run.

    Raises:
        ValueError: a value outside its range, by the name of its option.
    """

    model: str
    output: Path
    sizes: Sizes
    tasks: tuple[str, ...]
    sections: tuple[str, ...] = SECTIONS
    cells: tuple[str, ...] = ("*",)
    dtype: str = "float32"
    timed_dtype: str = "auto"
    batch: int = 24
    timed_batch: int = 1
    threads: int = 1
    seed: int = 0
    data: Path | None = None
    plans: dict[str, str] = field(default_factory=dict)
    run_code: Literal["namespaces", "limits"] | None = None

    def __post_init__(self) -> None:
        for name in ("batch", "timed_batch", "threads"):
            value = getattr(self, name)
            flag = f"--{name.replace('_', '-')}"
            _check(f"{flag} is {value}", value >= 1, "at least 1")
        for name in ("prompts", "held_out", "ablated", "timed", "repeats", "short", "trials"):
            value = getattr(self.sizes, name)
            _check(f"--{name.replace('_', '-')} is {value}", value >= 1, "at least 1")
        _check(f"--seed is {self.seed}", 0 <= self.seed < 2**31, "0 to 2147483647")
        wrong = sorted(set(self.plans) - set(self.tasks))
        _check(f"--plan is for {', '.join(wrong)}", not wrong, f"for {', '.join(self.tasks)}")
        needed = not self.plans or self.searches
        _check(f"--plan is given for --only {', '.join(self.sections)}", needed, "main or timed")
        tested = self.run_code is None or "humaneval" in self.tasks
        _check(f"--run-code is {self.run_code}", tested, "left out where no task is humaneval")
        if self.data is not None and self.data.is_file():
            said = f"--data is {self.data}, a file, for {len(self.tasks)} tasks"
            _check(said, len(self.tasks) == 1, "a folder, or for one --task")
        if self.output.exists():
            _check(f"--output is {self.output}", self.output.is_dir(), "a folder")

    @property
    def searches(self) -> bool:
        """Whether Draft & Verify's sets are needed."""
        return bool({"main", "timed"} & set(self.sections))

    @property
    def timed_prompts(self) -> int:
        """Prompts of one turn: so many that a full batch is followed by another."""
        return max(3, self.sizes.timed, -(-3 * self.timed_batch // 2))

    def about(self) -> dict[str, Any]:
        """What the numbers of a cell depend on, but for the model and the prompts themselves."""
        s = self.sizes
        return {
            "tasks": list(self.tasks),
            "dtype": self.dtype,
            "timed_dtype": self.timed_dtype,
            "timed_batch": self.timed_batch,
            "batch": self.batch,
            "seed": self.seed,
            "plans": dict(self.plans),
            "run_code": self.run_code,
            "prompts": s.prompts,
            "held_out": s.held_out,
            "ablated": s.ablated,
            "timed": self.timed_prompts,
            "repeats": s.repeats,
            "whole": {task: s.whole[task] for task in self.tasks},
            "tokens": {task: s.tokens[task] for task in self.tasks},
            "short": s.short,
            "random_sets": s.random_sets,
            "trials": s.trials,
            "swaps": s.swaps,
            "levels": list(s.levels),
            "every_ablation": s.every_ablation,
        }


def _check(what: str, good: bool, right: str) -> None:
    if not good:
        raise ValueError(f"{what}: it must be {right}")
