"""From options and job file to a `RunConfig`.

A value comes from the command line, else from the job file, else from the configuration classes.
What a class refuses is named with its place: the option, or the job file with table and key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

from admg.config import DraftConfig, EngineConfig, SamplingParams
from admg.draft_rules import DropRule, ExitRule, WindowRule
from jobs.job_file import TABLES, JobFile, SamplingTable
from jobs.mistakes import read_template
from jobs.plan_file import PlanFile, read_plan
from pipeline.config import PromptConfig, RunConfig
from pipeline.made_for import MadeFor

T = TypeVar("T")

_LEVELS = ("drop_layers", "similarity_threshold", "drop_quantile", "drop_attention")
_WINDOWS = ("window_share", "window_threshold")
_EXIT = tuple(f.name for f in fields(ExitRule))
# Who says how the model's own drafts are made wants them made.
_OWN_DRAFTS = (
    *("plan", *_LEVELS, *_WINDOWS, "drop_mlps", "similarity", "draft_weights", "lookup_tail"),
    *("remake_after", "remake_every", "exit_threshold", *(f"exit_{name}" for name in _EXIT)),
)
# Where a configuration class calls a value otherwise than its option does.
_OPTION_OF = {
    "column": "prompt_column",
    "mode": "chat",
    "on_long": "on_long_prompt",
    "stop_token_ids": "stop_token_id",
    "threshold": "similarity_threshold",
    "quantile": "drop_quantile",
    "count": "drop_layers",
    "attention": "drop_attention",
    "mlps": "drop_mlps",
    "kv_budget_bytes": "kv_budget",
    "storage_patience_seconds": "storage_patience",
}


class _Values:
    """All values by option name, and for each the place that it came from."""

    def __init__(self, flags: Mapping[str, Any], job: JobFile, source: str | None) -> None:
        self.flags = {k: v for k, v in flags.items() if v is not None}
        at = f"{source}: "
        self.file = {k: (f"{at}{k}", v) for k, v in job if k not in TABLES and v is not None}
        for name in TABLES:
            for key, value in getattr(job, name):
                if value is not None:
                    self.file[key] = (f"{at}{name}.{key}", value)
        self.plan_name: str | None = self.get("plan")
        self.plan: PlanFile | None = None
        if self.plan_name is not None:
            self.plan = read_plan(self.plan_name)
            at = f"{self.plan_name}: draft."
            plan = {k: (f"{at}{k}", v) for k, v in self.plan.values().items()}
            # What stands beside a plan's name changes the plan; a plan that is given changes it.
            given = "plan" in self.flags
            self.file = _over(self.file, plan) if given else _over(plan, self.file)
        self.file = _without_rivals(self.file, self.flags)

    def get(self, key: str, default: Any = None) -> Any:
        if key in self.flags:
            return self.flags[key]
        return self.file[key][1] if key in self.file else default

    def one_of(self, keys: Sequence[str]) -> list[str]:
        """Which of these is given, or none; two are a mistake."""
        given = [k for k in keys if self.get(k) is not None]
        if len(given) > 1:
            places = " and ".join(self.place(k) for k in given)
            raise ValueError(f"{places} contradict each other: give one of them")
        return given

    def place(self, key: str) -> str:
        if key in self.file and key not in self.flags:
            return str(self.file[key][0])
        return "--" + key.replace("_", "-")

    def given(self, keys: Mapping[str, str]) -> dict[str, Any]:
        """Arguments of a configuration class: its names, for the options that have a value."""
        pairs = ((argument, self.get(option)) for option, argument in keys.items())
        return {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in pairs
            if value is not None
        }

    def build(self, make: Callable[..., T], keys: Mapping[str, str], **more: Any) -> T:
        """Call `make`, and put the place in front of what it refuses."""
        try:
            return make(**self.given(keys), **more)
        except ValueError as error:
            name, _, rest = str(error).partition(" ")
            option = name.rpartition(".")[2]
            option = _OPTION_OF.get(option, option)
            known = option in self.flags or option in self.file
            raise ValueError(f"{self.place(option)} {rest}" if known else str(error)) from error


def _over(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """The values of both; where both say something, those of `upper`."""
    return {**_without_rivals(lower, upper), **upper}


def _without_rivals(values: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Without what says in another way what `upper` says: one replaces another of its kind."""
    replaced = {k for either in (_LEVELS, _WINDOWS) if upper.keys() & set(either) for k in either}
    return {k: v for k, v in values.items() if k not in replaced}


def plan_config(name: str) -> DraftConfig:
    """How to draft by a plan alone, a file or a published set's name.

    Raises:
        ValueError: one sentence that names the place, the value and what would be right.
    """
    return _draft(_Values({"plan": name}, JobFile(), None))


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def run_config(flags: Mapping[str, Any], job: JobFile, source: str | None = None) -> RunConfig:
    """The configuration of a run; `model` is still as the user wrote it ("demo" included).

    Args:
        flags: values by option name; None where the option was not given.
        job: the job file, or an empty one.
        source: the job file's name, for messages.

    Raises:
        ValueError: one sentence that names the place, the value and what would be right.
    """
    values = _Values(flags, job, source)
    for name, value in values.flags.items():
        if isinstance(value, float) and not math.isfinite(value):
            right = "a number that is not nan and not infinite"
            raise ValueError(f"{values.place(name)} is {value}: it must be {right}")
    missing = [k for k in ("input", "output", "model") if values.get(k) is None]
    if missing:
        options = " and ".join(f"--{k}" for k in missing)
        raise ValueError(f"{options} must be given, here or in the job file")
    law = _same(*(k for k in SamplingTable.model_fields if k != "stop_token_id"))
    law["stop_token_id"] = "stop_token_ids"
    engine = values.build(
        EngineConfig,
        _same("max_num_seqs", "max_model_len", "gpu_memory_utilization"),
        kv_budget_bytes=_size(values),
        draft=_draft(values),
    )
    top = _same("input", "output", "model", "id_column", "keep")
    top |= _same("max_crashes", "row_deadline_seconds", "token_deadline_seconds")
    top |= _same("on_changed", "retry_failed", "max_rows_per_file")
    top |= _same("row_parameters", "allow_bad_shards", "audit", "explain")
    top["storage_patience"] = "storage_patience_seconds"
    return values.build(
        RunConfig,
        top | _same("actors", "gpus_per_actor", "threads", "dtype", "rows_per_block"),
        prompt=_prompt(values),
        sampling=values.build(SamplingParams, law),
        engine=engine,
        made_for=_made_for(values),
    )


def _made_for(values: _Values) -> MadeFor | None:
    if values.plan is None or values.plan_name is None or values.get("plan_any_model"):
        return None
    return values.plan.made_for(values.plan_name)


def _prompt(values: _Values) -> PromptConfig:
    template, chat = values.get("template"), values.get("chat")
    text = None if template is None else read_template(template, values.place("template"))
    if template is not None and chat is False:
        raise ValueError(
            f"{values.place('template')} makes the prompt, so it cannot go with --raw: "
            "leave --raw out, or use --chat"
        )
    mode = "chat" if chat else "raw" if text is None else "template"
    keys = {"prompt_column": "column", "system": "system", "on_long_prompt": "on_long"}
    return values.build(PromptConfig, keys, mode=mode, template=text)


def _draft(values: _Values) -> DraftConfig:
    levels = values.one_of(_LEVELS)
    rule = {option: name for name, option in _OPTION_OF.items() if option in _LEVELS}
    drop: dict[str, Any] = {}
    if levels or values.get("drop_mlps") is not None:
        level = {} if levels else {"quantile": DraftConfig().drop.quantile}
        keys = {k: rule[k] for k in levels} | {"drop_mlps": "mlps"}
        drop["drop"] = values.build(DropRule, keys, **level)
    if windows := _windows(values):
        drop["windows"] = windows
    exits = {f"exit_{name}": name for name in _EXIT}
    if any(values.get(option) is not None for option in exits):
        drop["exit"] = values.build(ExitRule, exits)
    keys = _same("drafter", "draft_tokens", "exit_threshold", "similarity", "verification")
    keys |= _same("hole_filling", "remake_after", "remake_every", "draft_weights")
    keys |= _same("lookup_store_tokens", "lookup_tail")
    described = any(values.get(option) not in (None, "auto") for option in _OWN_DRAFTS)
    if values.get("drafter") is None and not described:
        drop["drafter"] = "auto"
    return values.build(DraftConfig, keys, **drop)


def _windows(values: _Values) -> WindowRule | None:
    if not values.one_of(_WINDOWS):
        if values.get("window") is not None:
            raise ValueError(
                f"{values.place('window')} says how much limited heads read: it must go with "
                "--window-share or --window-threshold, which say how many are limited"
            )
        return None
    names = {"window_share": "share", "window_threshold": "threshold", "window": "window"}
    return values.build(WindowRule, names)


_UNITS = {"": 1} | {
    f"{letter}{end}": base**power
    for power, letter in enumerate("KMGT", start=1)
    for end, base in (("", 1024), ("iB", 1024), ("B", 1000))
}


def _size(values: _Values) -> int | None:
    raw = values.get("kv_budget")
    if raw is None or isinstance(raw, int):
        return raw
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", raw)
    units = {unit.lower(): factor for unit, factor in _UNITS.items()} | {"b": 1}
    if found is None or found[2].lower() not in units:
        raise ValueError(f"{values.place('kv_budget')} is {raw!r}: it must be a size as 2GiB")
    return int(float(found[1]) * units[found[2].lower()])
