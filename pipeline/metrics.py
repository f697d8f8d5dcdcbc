"""Prometheus metrics of a Decode actor, exported by Ray on every node's metrics port.

Ray puts `ray_` before each name and `_total` behind a counter's; `EXPORTED` has the names as they
come out, which is what `deploy/grafana-dashboard.json` asks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from admg.stats import EngineCounters
from pipeline.counters import Counters

_PREFIX = "admg_batch_"
_ROUND_SECONDS = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0]

# Name: what it says, and the labels beside `job`.
_COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "tokens": ("Tokens of prompts and completions, as they are made.", ("kind",)),
    "rows": ("Finished rows by status, and by error code.", ("status", "error_code")),
    "target_passes": ("Passes of the full model, counted for each sequence in them.", ()),
    "draft_tokens": ("Tokens that drafts have proposed.", ()),
    "accepted_draft_tokens": ("Draft tokens that were kept.", ()),
    "drafter_tokens": ("Draft tokens of finished rows by who drafted them.", ("source",)),
    "pass_seconds": ("Seconds in passes of prefill, draft and verify.", ("kind",)),
}
_GAUGES: dict[str, str] = {
    "mean_acceptance_length": "Tokens committed per pass of the full model, lately.",
    "speedup": "Estimated speedup over plain decoding of the rows that finished last.",
    "running_sequences": "Sequences that are decoded together now: the batch.",
    "waiting_sequences": "Sequences that wait for a place in the batch.",
    "kv_cache_use": "Share of the KV cache that belongs to running sequences, 0 to 1.",
}
_HISTOGRAMS: dict[str, str] = {"round_seconds": "Seconds of a round: prefill, draft, verification."}

EXPORTED = frozenset(
    [f"ray_{_PREFIX}{name}_total" for name in _COUNTERS]
    + [f"ray_{_PREFIX}{name}" for name in _GAUGES]
    + [f"ray_{_PREFIX}{n}_{part}" for n in _HISTOGRAMS for part in ("bucket", "sum", "count")]
)


@dataclass(frozen=True, slots=True)
class Sample:
    """What an engine has done so far.

    `drafted` counts draft tokens of finished sequences by source; `rounds` are the seconds of the
    rounds since the sample before.
    """

    counters: Counters = field(default_factory=Counters)
    engine: EngineCounters = field(default_factory=EngineCounters)
    drafted: Mapping[str, int] = field(default_factory=dict)
    rounds: Sequence[float] = ()

    def totals(self) -> dict[tuple[str, tuple[str, ...]], float]:
        """The counters' values by name and labels."""
        c, e = self.counters, self.engine
        totals: dict[tuple[str, tuple[str, ...]], float] = {
            ("tokens", ("prompt",)): c.prompt_tokens,
            ("tokens", ("completion",)): c.completion_tokens,
            ("rows", ("ok", "")): c.rows - c.rows_error,
            ("target_passes", ()): c.num_spec_steps,
            ("draft_tokens", ()): e.num_draft_tokens,
            ("accepted_draft_tokens", ()): e.num_accepted_draft_tokens,
            ("pass_seconds", ("prefill",)): e.prefill_seconds,
            ("pass_seconds", ("draft",)): e.draft_seconds,
            ("pass_seconds", ("verify",)): e.verify_seconds,
        }
        totals |= {("rows", ("error", code)): n for code, n in c.errors.items()}
        totals |= {("drafter_tokens", (source,)): n for source, n in self.drafted.items()}
        return totals


class Metrics:
    """The instruments of one process. Cheap: some twenty numbers about once a second.

    Args:
        job: the value of the label that tells jobs on one cluster apart.
    """

    def __init__(self, job: str) -> None:
        from ray.util import metrics

        def made(kind: Any, name: str, text: str, *labels: str, **rest: Any) -> Any:
            keys = ("job", *labels)
            made = kind(_PREFIX + name, description=text, tag_keys=keys, **rest)
            return made.set_default_tags({"job": job})

        self._counters = {
            name: made(metrics.Counter, name, text, *labels)
            for name, (text, labels) in _COUNTERS.items()
        }
        self._gauges = {n: made(metrics.Gauge, n, text) for n, text in _GAUGES.items()}
        self._histograms = {
            name: made(metrics.Histogram, name, text, boundaries=_ROUND_SECONDS)
            for name, text in _HISTOGRAMS.items()
        }
        self._before = Sample()

    def record(self, sample: Sample) -> None:
        """Take in what is new since the sample before."""
        before, self._before = self._before, sample
        old = before.totals()
        for (name, values), total in sample.totals().items():
            grown = total - old.get((name, values), 0)
            if grown > 0:
                labels = dict(zip(_COUNTERS[name][1], values, strict=True))
                self._counters[name].inc(grown, tags=labels)
        for name, value in _levels(before, sample).items():
            self._gauges[name].set(value)
        for seconds in sample.rounds:
            self._histograms["round_seconds"].observe(seconds)


def _levels(before: Sample, now: Sample) -> dict[str, float]:
    """The gauges that have a value: ratios of what is new, and what the engine holds."""
    old, new, engine = before.counters, now.counters, now.engine
    levels: dict[str, float] = {
        "running_sequences": engine.num_running,
        "waiting_sequences": engine.num_waiting,
    }
    if engine.num_slots:
        levels["kv_cache_use"] = engine.num_slots_used / engine.num_slots
    if new.num_spec_steps > old.num_spec_steps:
        passes = new.num_spec_steps - old.num_spec_steps
        levels["mean_acceptance_length"] = (new.spec_tokens - old.spec_tokens) / passes
    if new.timed_seconds > old.timed_seconds:
        timed = new.timed_seconds - old.timed_seconds
        levels["speedup"] = (new.speedup_seconds - old.speedup_seconds) / timed
    return levels


def metrics_of_this_actor() -> Metrics | None:
    """Metrics for this process; None where it is no Ray actor's."""
    import ray

    if not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    return Metrics(context.get_job_id()) if context.get_actor_id() else None
