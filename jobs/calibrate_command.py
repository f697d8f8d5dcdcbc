"""`admg-batch calibrate`: plans from a sample of one's own prompts, and nothing heavy up here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.failures import EXIT_INTERRUPTED, command_line, verbose_option
from jobs.option_kinds import ExampleCommand, ExampleGroup, apply, option
from jobs.options import sample_options

if TYPE_CHECKING:
    from jobs.calibrate.inputs import Inputs

# As many as the authors of Draft & Verify search with.
_NEW_TOKENS = 32
_PLAN, _WORTH = "The plan", "What a plan is worth"
_ADMG = """\
admg-batch calibrate admg --input prompts --model demo --chat --output plan.toml
admg-batch calibrate admg --input prompts --model demo --chat --drop-count 6 --output plan.toml
admg-batch run --input prompts --output summaries --model demo --chat --plan plan.toml"""
_DRAFT_VERIFY = """\
admg-batch calibrate draft-verify --input prompts --model demo --chat --output searched.toml
admg-batch calibrate draft-verify --config job.toml --trials 1000 --output searched.toml
admg-batch run --config job.toml --plan searched.toml"""
_MODELLED = """\
The modelled speedup is a roofline's: bytes of weights, keys and values that drafts and
verification read on --device, and operations, for --batch sequences at --context tokens. The
sample's tokens per target pass are measured. So the same sample gives the same plan.
"""


def _more(tokens: int, threshold: str, prompts: int) -> list[Any]:
    return [
        option(
            _PLAN,
            "--output",
            type=click.Path(path_type=Path, dir_okay=False),
            required=True,
            metavar="FILE",
            help="The plan file to be written (TOML).",
        ),
        option(_PLAN, "--prompts", type=int, help="Rows to take from the input.", default=prompts),
        option(_PLAN, "--max-tokens", type=int, help="New tokens of each.", default=_NEW_TOKENS),
        option(_PLAN, "--draft-tokens", type=int, help="Longest draft.", default=tokens),
        option(
            _PLAN,
            "--exit-threshold",
            type=float,
            help="End a draft below this confidence.",
            default=threshold,
        ),
        option(
            _WORTH,
            "--device",
            metavar="NAME",
            help="L40S, A100-80G, H100, H200, or here: this machine, measured.",
            default="H200",
        ),
        option(_WORTH, "--batch", type=int, help="Sequences decoded together.", default=16),
        option(
            _WORTH,
            "--context",
            type=float,
            help="Tokens of a sequence.  [default: the sample's mean]",
        ),
        option(
            _WORTH,
            "--dtype",
            type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
            help="Of the weights and the arithmetic.",
            default="auto",
        ),
    ]


@click.group(cls=ExampleGroup, example=f"{_ADMG}\n{_DRAFT_VERIFY}")
def calibrate() -> None:
    """Make a plan file from a sample of your own prompts, for `run --plan`.

    A plan says what drafts leave out. Completions are the same with any plan.
    """


@calibrate.command(cls=ExampleCommand, example=_ADMG, notes=_MODELLED)
@sample_options
@apply(_more(4, "off", 16))
@option(
    _PLAN,
    "--drop-count",
    type=float,
    help="Layers to drop on average.  [default: what models the best speedup]",
)
@verbose_option
@click.pass_context
def admg(ctx: click.Context, drop_count: float | None, output: Path, **flags: Any) -> None:
    """Find ADMG's similarity threshold, and show how stable its choice is.

    Writes the plan, and beside it the similarity profile as an SVG file.
    """
    from jobs.calibrate import show
    from jobs.calibrate.admg import calibrate as run
    from jobs.calibrate.admg import check_with
    from jobs.terminal import terminal

    inputs = _inputs(ctx, flags, output, 16, check=check_with(drop_count))
    found = run(inputs, drop_count, _say)
    picture = output.with_suffix(".svg")
    picture.write_text(show.profile_svg(found.profile, found.best.threshold), encoding="utf-8")
    console = terminal()
    console.print(show.profile_table(found))
    console.print(show.levels_table(found))
    click.echo(show.reported(found))
    click.echo(show.stability(found))
    _say_if_slower(found.reported.speedup)
    click.echo(f"Wrote {output} and {picture}.")


@calibrate.command("draft-verify", cls=ExampleCommand, example=_DRAFT_VERIFY, notes=_MODELLED)
@sample_options
@apply(_more(12, "0.6", 16))
@option(_PLAN, "--trials", type=int, help="Sets to try in all.", default=200)
@option(
    _WORTH,
    "--objective",
    type=click.Choice(["modelled", "measured"]),
    help="A trial's modelled speedup, or the tokens per second that it decodes with here.",
    default="modelled",
)
@verbose_option
@click.pass_context
def draft_verify(
    ctx: click.Context, trials: int | None, objective: str | None, output: Path, **flags: Any
) -> None:
    """Search for a fixed set of attention and MLP sub-layers, as Draft & Verify does.

    One half of the prompts is searched on, with one pass of a few tokens for every draft behind a
    known completion; the best sets are then decoded with on the other half, and the best of these
    is the plan. An interrupted search goes on from the file of its trials beside the plan.
    """
    from jobs.calibrate import show
    from jobs.calibrate.draft_verify import search, storage_of
    from jobs.terminal import terminal

    wanted = 200 if trials is None else trials
    if wanted < 1:
        raise ValueError(f"--trials is {wanted}: it must be at least 1")
    given = {"draft_tokens": 12, "exit_threshold": 0.6}
    flags = given | {k: v for k, v in flags.items() if v is not None}

    def run() -> Any:
        return search(_inputs(ctx, flags, output, 16), wanted, objective == "measured", _say)

    found = _interruptible(ctx, run, storage_of(output))
    terminal().print(show.sets_table(found))
    click.echo(show.best_of(found))
    _say_if_slower(found.checked[0].value / found.plain, "clock" if found.measured else "model")
    click.echo(f"Wrote {output}, the best of {found.trials} trials in {storage_of(output)}.")


def _inputs(
    ctx: click.Context, flags: dict[str, Any], output: Path, prompts: int, **more: Any
) -> Inputs:
    from jobs.calibrate.inputs import load_inputs

    values = dict(flags)
    if values.get("max_tokens") is None:
        values["max_tokens"] = _NEW_TOKENS
    own = {name: values.pop(name, None) for name in ("prompts", "device", "batch", "context")}
    defaults: dict[str, Any] = {"prompts": prompts, "device": "H200", "batch": 16, "context": None}
    chosen = {k: defaults[k] if v is None else v for k, v in own.items()}
    for name in ("prompts", "batch", "context"):
        if chosen[name] is not None and not chosen[name] >= 1:
            raise ValueError(f"--{name} is {chosen[name]}: it must be at least 1")
    config = values.pop("config", None)
    more |= {"config": config, "output": output, "command": command_line(ctx)}
    return load_inputs(values, **chosen, **more)


def _interruptible(ctx: click.Context, run: Callable[[], Any], kept: Path) -> Any:
    """Run; interrupted, say how to go on if there is something to go on from."""
    try:
        return run()
    except KeyboardInterrupt:
        if not kept.exists():
            raise  # the group says that much
        how = f"To go on from the trials in {kept}, give the same command"
        click.echo(f"\nInterrupted. {how}:\n\n  {command_line(ctx)}\n", err=True)
        ctx.exit(EXIT_INTERRUPTED)


def _say_if_slower(speedup: float, judge: str = "model") -> None:
    if speedup <= 1:
        click.echo(
            f"By the {judge} none of these drafts is faster than plain decoding there. It may be "
            "with other --draft-tokens, --batch or --context; `run --drafter auto` measures, and "
            "drafts only where that pays."
        )


def _say(line: str) -> None:
    click.echo(line, err=True)
