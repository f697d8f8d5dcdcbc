"""`admg-batch run --dry-run`: the resolved configuration and the plan, printed; nothing is run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from jobs.console import duration, json_text
from jobs.failures import Failure, shown
from jobs.option_kinds import apply, option
from pipeline.redaction import redacted_values

if TYPE_CHECKING:
    from jobs.job_file import JobFile
    from jobs.measured_sample import Sample
    from jobs.plan import Plan
    from pipeline.config import RunConfig

_GROUP = "Looking ahead"

dry_run_options = apply(
    [
        option(
            _GROUP,
            "--dry-run",
            is_flag=True,
            help="Print the resolved configuration and the plan (rows, tokens, hours); write "
            "nothing.",
        ),
        option(
            _GROUP,
            "--no-sample",
            is_flag=True,
            help="With --dry-run: load no model; hours come from the output's last run.",
        ),
        option(_GROUP, "--json", "as_json", is_flag=True, help="With --dry-run: one JSON object."),
    ]
)


def looks_ahead(dry_run: bool, no_sample: bool, as_json: bool) -> bool:
    """Whether only the plan is wanted.

    Raises:
        click.UsageError: options of a plan without it.
    """
    for given, name in ((no_sample, "--no-sample"), (as_json, "--json")):
        if given and not dry_run:
            raise click.UsageError(f"{name} must go with --dry-run")
    return bool(dry_run)


def show_plan(
    config: RunConfig, flags: dict[str, Any], job: JobFile, *, sample: bool, as_json: bool
) -> None:
    """Print what a run of this configuration would do.

    Raises:
        ValueError: what the run would refuse.
    """
    from jobs.plan import make_plan
    from jobs.resolved import resolved_job, resolved_toml

    template = flags.get("template") or job.prompt.template
    used = flags.get("plan") or job.draft.plan
    plan = make_plan(with_model(config), with_sample=sample)
    if as_json:
        whole = {"configuration": resolved_job(config, template, used), "plan": plan.to_dict()}
        click.echo(json_text(redacted_values(whole)))
        return
    click.echo("# The configuration, as a job file:\n")
    click.echo(shown(resolved_toml(config, template, used)))
    click.echo("# The plan (nothing was written):\n#")
    for line in plan_lines(plan):
        click.echo(shown(f"#   {line}"))


def with_model(config: RunConfig) -> RunConfig:
    """The same with the demo model's folder, where that is asked for.

    Raises:
        Failure: the demo model cannot be fetched.
    """
    from jobs.demo_model import DemoModelError, demo_model

    if config.model != "demo":
        return config
    try:
        return replace(config, model=str(demo_model()))
    except DemoModelError as error:
        raise Failure(str(error)) from error


def plan_lines(plan: Plan) -> list[str]:
    """The plan for people, a fact a line."""
    lines = [
        f"shards       {plan.shards}",
        *(f"left out     {sentence}" for sentence in plan.bad_shards),
        f"rows         {plan.rows}, of which {plan.rows_left} are left to do",
    ]
    if not plan.rows_left:
        return [*lines, "             nothing to decode"]
    if plan.share_of_error_rows:
        share = f"{100 * plan.share_of_error_rows:.1f} %"
        lines.append(f"error rows   {share} of {plan.rows_tokenised} rows looked at")
    lines.append(
        f"tokens       about {plan.prompt_tokens_left} in prompts (from {plan.rows_tokenised} "
        f"rows), {plan.completion_tokens_left} in completions"
    )
    if plan.sample is not None:
        lines += _sample_lines(plan.sample)
    if plan.hours is None:
        lines.append("time         not known")
    else:
        lines.append(
            f"time         about {duration(3600 * plan.hours)} ({plan.hours:.3g} hours) with "
            f"actors: {plan.actors}, GPUs for each: {plan.gpus_per_actor:g}"
        )
        lines.append(f"             {plan.gpu_hours:.3g} GPU-hours")
    return [*lines, *(f"resting on   {words}" for words in plan.basis)]


def _sample_lines(sample: Sample) -> list[str]:
    prefill, decode = sample.prefill_tokens_per_second, sample.decode_tokens_per_second
    lines = [
        f"sample       {sample.sequences} rows of up to {sample.max_tokens} tokens on "
        f"{sample.where}: {sample.seconds:.1f} s, after {sample.load_seconds:.1f} s of loading",
        f"             {_speed(prefill)} tokens/s in prompts, {_speed(decode)} in completions",
    ]
    if sample.mean_acceptance_length is not None:
        speedup = "" if sample.speedup is None else f", speedup {sample.speedup:.2f}"
        length = sample.mean_acceptance_length
        lines.append(f"             {length:.2f} tokens per target pass{speedup}")
    return lines


def _speed(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
