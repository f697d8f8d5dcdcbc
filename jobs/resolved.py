"""A resolved configuration as a job file: what a command and its job file have come to, as TOML.

Reading it back gives the same configuration, from any folder: its paths are absolute.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from admg.draft_rules import DropRule, ExitRule, WindowRule
from jobs.plan_file import is_file
from jobs.submission import absolute
from pipeline.config import RunConfig

_ENGINE = (
    "dtype",
    "actors",
    "gpus_per_actor",
    "threads",
    "rows_per_block",
    "max_crashes",
    "row_deadline_seconds",
    "token_deadline_seconds",
)
_TOP = ("id_column", "on_changed", "retry_failed", "allow_bad_shards", "max_rows_per_file")
_DRAFT = (
    "drafter",
    "draft_tokens",
    "similarity",
    "exit_threshold",
    "verification",
    "hole_filling",
    "remake_after",
    "remake_every",
    "draft_weights",
    "lookup_store_tokens",
    "lookup_tail",
)
_LAW = (
    "max_tokens",
    "min_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "seed",
    "ignore_eos",
)


def resolved_toml(config: RunConfig, template: str | None, plan: str | None = None) -> str:
    """The job file of a configuration; values that are off by being absent are left out.

    Args:
        config: what was resolved.
        template: the path of its template, if it has one: a job file names the file.
        plan: its plan's name, if it has one: what the plan says is there too, and which model it
            was made for is checked anew.
    """
    import tomli_w

    return tomli_w.dumps(resolved_job(config, template, plan))


def resolved_job(
    config: RunConfig, template: str | None, plan: str | None = None
) -> dict[str, Any]:
    """The same as nested values by the job file's keys."""
    draft = config.engine.draft
    law = config.sampling
    job = {
        "input": [absolute(path) for path in config.input],
        "output": absolute(config.output),
        "model": config.model if config.model == "demo" else absolute(config.model),
        **_of(config, _TOP),
        "storage_patience": config.storage_patience_seconds,
        "keep": list(config.keep),
        "row_parameters": list(config.row_parameters),
        "prompt": {
            "prompt_column": config.prompt.column,
            "chat": config.prompt.mode == "chat",
            "template": None if template is None else absolute(template),
            "system": config.prompt.system,
            "on_long_prompt": config.prompt.on_long,
        },
        "sampling": _of(law, _LAW)
        | {"stop": list(law.stop), "stop_token_id": list(law.stop_token_ids)},
        "draft": _of(draft, _DRAFT)
        | _drop(draft.drop)
        | _windows(draft.windows)
        | _exit(draft.exit)
        | {"audit": config.audit, "explain": config.explain}
        | _plan(config, plan),
        "engine": {
            "max_num_seqs": config.engine.max_num_seqs,
            "kv_budget": config.engine.kv_budget_bytes,
            "gpu_memory_utilization": config.engine.gpu_memory_utilization,
            "max_model_len": config.engine.max_model_len,
            **_of(config, _ENGINE),
        },
    }
    if config.prompt.mode == "template":
        del job["prompt"]["chat"]  # a template without chat is a mode of its own
    return _without_none(job)


def _of(values: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(values, name) for name in names}


def _drop(rule: DropRule) -> dict[str, Any]:
    return {
        "similarity_threshold": rule.threshold,
        "drop_quantile": rule.quantile,
        "drop_layers": rule.count,
        "drop_attention": None if rule.attention is None else list(rule.attention),
        "drop_mlps": list(rule.mlps) or None,
    }


def _exit(rule: ExitRule) -> dict[str, Any]:
    return {} if rule == ExitRule() else {f"exit_{k}": v for k, v in asdict(rule).items()}


def _plan(config: RunConfig, plan: str | None) -> dict[str, Any]:
    if plan is None or config.made_for is None:
        return {}  # without a model to check, it says no more than what is resolved already
    return {"plan": absolute(plan) if is_file(plan) else plan}


def _windows(rule: WindowRule | None) -> dict[str, Any]:
    if rule is None:
        return {}
    return {
        "window_share": rule.share,
        "window_threshold": rule.threshold,
        "window": rule.window,
    }


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if value is not None
    }
