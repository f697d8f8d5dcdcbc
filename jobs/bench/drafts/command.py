"""`admg-batch bench drafts`: the options, and nothing heavy before the body."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jobs.bench.given import data_option, only_given
from jobs.failures import EXIT_INTERRUPTED, command_line, verbose_option
from jobs.options import ExampleCommand
from jobs.whole_file import check_folder

if TYPE_CHECKING:
    from jobs.bench.drafts.measure import Bench
    from jobs.bench.drafts.report import Report
    from jobs.bench.drafts.variants import Variant

_WIDTH = 110
_QUICK: dict[str, Any] = {"workload": "demo", "prompts": 8, "max_tokens": 32}
_USUAL: dict[str, Any] = {"workload": "summarization", "prompts": 40, "max_tokens": 64}
_EXAMPLE = """
admg-batch bench drafts --quick
admg-batch bench drafts --prompts 10 --only budgets --record drafts.json
admg-batch bench drafts --record drafts.json
"""
_NOTES = """\
Numbers are counts: they are the same on a busy machine. fp32, drafts of 4 tokens, greedy but for
the last groups. Saved keys and values, and weights (of those in bf16), are what a draft pass does
not read. Texts other than plain decoding's are near-ties; drafts that are verified by rejection
keep its law alone. All of it takes about an hour on 2 cores.
"""


@click.command(cls=ExampleCommand, example=_EXAMPLE, notes=_NOTES)
@click.option("--model", metavar="DIR", default="demo", help="A Hugging Face folder.")
@click.option("--workload", metavar="NAME", help="As in `bench engine`.  [default: summarization]")
@click.option("--prompts", type=click.IntRange(min=1), help="How many.  [default: 40]")
@click.option(
    "--max-tokens", type=click.IntRange(min=2), help="Of every completion.  [default: 64]"
)
@click.option(
    "--batch",
    type=click.IntRange(1, 1024),
    default=16,
    show_default=True,
    help="Sequences decoded together; no number depends on it.",
)
@click.option("--only", metavar="WORDS", multiple=True, help="Drafts so named. Repeatable.")
@data_option
@click.option(
    "--record",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a JSON file, anew after each kind of draft.",
)
@click.option("--quick", is_flag=True, help="Few drafts and prompts, of demo: about 2 minutes.")
@verbose_option
@click.pass_context
def drafts(ctx: click.Context, **flags: Any) -> None:
    """What each kind of draft brings: tokens per target pass, acceptance, bytes saved.

    Dropped layers, smaller weights, attention budgets, lookup, and the three verifications, each
    beside what it should bring. Ctrl-C keeps and prints what is measured.
    """
    given = only_given(flags)
    quick = given.pop("quick", False)
    chosen = (_QUICK if quick else _USUAL) | given
    bench, report = _prepared(ctx, chosen, quick)
    interrupted = False
    try:
        _measure(bench, report, quick, chosen)
    except KeyboardInterrupt:
        interrupted = True
    _print(report)
    if interrupted:
        ctx.exit(EXIT_INTERRUPTED)


def _prepared(ctx: click.Context, chosen: dict[str, Any], quick: bool) -> tuple[Bench, Report]:
    """Everything that can be wrong is found before the model is loaded.

    Raises:
        ValueError: one sentence that says what is wrong.
    """
    from jobs.bench.machine import commit, machine, versions
    from jobs.bench.prompts import model_and_prompts
    from pipeline.machine import usable_cores

    check_folder("--record", chosen.get("record"))
    _check_only(chosen.get("only", ()), quick)
    path, prompts = model_and_prompts(chosen)
    from jobs.bench.drafts.measure import Bench
    from jobs.bench.drafts.report import Report

    lengths = [len(p) for p in prompts]
    about = {
        "command": command_line(ctx),
        "machine": machine(usable_cores(), "float32"),
        "versions": versions(path),
        "commit": commit(),
        "workload": chosen["workload"],
        "prompts": len(prompts),
        "mean_prompt_tokens": round(sum(lengths) / len(lengths), 1),
        "max_tokens": chosen["max_tokens"],
    }
    click.echo(f"loading {path}", err=True)
    return Bench(path, prompts, chosen["max_tokens"], chosen["batch"]), Report(about)


def _check_only(only: tuple[str, ...], quick: bool) -> None:
    from jobs.bench.drafts.variants import fixed

    variants = list(fixed(1000, quick))
    names = [f"{v.group} {v.name}" for v in variants]
    for word in only:
        if not any(word in name for name in names):
            groups = ", ".join(dict.fromkeys(v.group for v in variants))
            which = "a draft's name that --quick has" if quick else "a draft's name"
            raise ValueError(f"--only is {word!r}: it must be a part of {which}, or {groups}")


def _measure(bench: Bench, report: Report, quick: bool, chosen: dict[str, Any]) -> None:
    from jobs.bench.show import write_record

    for number, variant in enumerate(_variants(bench, report, quick, chosen.get("only", ())), 1):
        click.echo(f"[{number}] {variant.group}: {variant.name}", err=True)
        numbers = bench.measure(variant)
        click.echo(f"  {numbers.tokens_per_pass:.2f} tokens per target pass", err=True)
        report.rows.append((variant, numbers))
        if "record" in chosen:
            write_record(chosen["record"], report.document())


def _variants(
    bench: Bench, report: Report, quick: bool, only: tuple[str, ...]
) -> Iterator[Variant]:
    from jobs.bench.drafts.variants import dropped_beside, fixed

    length = report.about["mean_prompt_tokens"] + report.about["max_tokens"] / 2
    for variant in fixed(length, quick):
        words = f"{variant.group} {variant.name}"
        too_many = (variant.draft.drop.count or 0) > bench.config.num_layers - 2
        if too_many or (only and not any(word in words for word in only)):
            continue
        yield variant
        if variant.saved is not None:
            kv_saved = report.rows[-1][1].kv_saved or 0.0
            yield dropped_beside(variant.saved, kv_saved, bench.config.num_layers)


def _print(report: Report) -> None:
    from rich.console import Console

    from jobs.bench.drafts.report import compared_table, drafts_table

    # Where nobody looks, nothing needs to be folded to fit.
    console = Console(width=None if sys.stdout.isatty() else _WIDTH)
    console.print(drafts_table(report.rows))
    if report.compared:
        console.print(compared_table(report))
    what = (
        "{workload}: {prompts} prompts, {mean_prompt_tokens:g} tokens on average, {max_tokens} new"
    )
    said = "ones each, EOS ignored, fp32. ± is one standard error over prompts."
    click.echo(f"{what.format(**report.about)} {said}")
    click.echo(json.dumps(report.document()))
