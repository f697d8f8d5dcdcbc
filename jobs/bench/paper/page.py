"""The results page: Markdown and plots, from the record alone, so it can be made again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jobs.bench.paper.markdown import table
from jobs.bench.paper.modelling import devices_of
from jobs.bench.paper.numbers import both_laws, lossless, sets_of, tasks_of
from jobs.bench.paper.page_ablations import ablation_tables
from jobs.bench.paper.page_controls import answer, control_table, counts_of
from jobs.bench.paper.page_findings import findings, published_size
from jobs.bench.paper.page_main import (
    compared_table,
    main_table,
    measured_table,
    modelled_table,
    quality,
    robustness_tables,
)
from jobs.bench.paper.page_words import HOLDS, MISSING, MODELLED, READING, ROBUST, SETTING
from jobs.bench.paper.plots import plots
from jobs.bench.paper.record import Record
from jobs.bench.paper.settings import SECTIONS
from jobs.whole_file import write_whole

NAME = "paper.md"


def write_page(folder: Path, record: Record) -> Path:
    """Write the page and its plots beside the record; where it is."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = plots(record)
    for name, (svg, _) in drawn.items():
        write_whole(folder / f"{name}.svg", svg)
    page = folder / NAME
    write_whole(page, render(record, {name: title for name, (_, title) in drawn.items()}))
    return page


def render(record: Record, drawn: dict[str, str]) -> str:
    """The page's text; `drawn` are the plots that there are and their captions."""
    parts = [*_head(record), *_answer(record, drawn), *_main(record, drawn), *_speed(record)]
    parts += [*_robust(record), *_ablations(record, drawn)]
    parts += ["## Our reading of the two rules", READING]
    parts += [
        "## What holds here, and what may not elsewhere",
        HOLDS.format(model=_smaller(record)),
    ]
    parts += ["\n".join(f"- {line}" for line in findings(record))]
    parts += ["## What could not be compared, and why", MISSING]
    return "\n\n".join(parts) + "\n"


def _head(record: Record) -> Iterator[str]:
    about, run = record.about, record.run
    yield "# The paper's comparison, rebuilt"
    state = "" if "finished" in run else " **The run is not finished: this is what there is.**"
    asked = run.get("asked", {})
    if asked.get("cells", ["*"]) != ["*"] or len(asked.get("sections", SECTIONS)) < len(SECTIONS):
        state += f" Last asked for: {', '.join(asked['sections'])}; {', '.join(asked['cells'])}."
    commits = [run["commit"], *(c["commit"] for c in run.get("continued", []))]
    machine = run["machine"]
    yield (
        f"Made by `{run['command']}` from `paper.json` beside it: every number here comes from "
        f"that run. Model {about['model']}, {about['dtype']} where things are counted and "
        f"{_timed_dtype(record)} where they are timed; {machine['cpu']}, {machine['threads']} "
        f"threads; commit {', '.join(dict.fromkeys(map(str, commits)))}; begun {run['started']}."
        f"{state}"
    )
    same = lossless(record)
    others = ", ".join(same.others)
    yield (
        f"Lossless: {same.identical} of {same.rows} rows that a drafter has decoded have the "
        f"tokens of plain decoding.{f' **Others are in: {others}.**' if others else ''}"
    )
    rows = [
        [
            text["title"],
            str(len(text["lengths"])),
            f"{sum(text['lengths']) / len(text['lengths']):.0f}",
            str(text["max_tokens"]),
            str(text["counted"]),
            str(len(text["held_out_lengths"])),
            text["source"],
        ]
        for text in about["texts"].values()
    ]
    head = [
        "text",
        "prompts",
        "mean tokens",
        "new tokens, plain",
        "new tokens, drafters",
        "held out",
        "source",
    ]
    yield table(head, rows)
    yield SETTING


def _answer(record: Record, drawn: dict[str, str]) -> Iterator[str]:
    yield "## Does it matter that layers are chosen for each input?"
    if not counts_of(record):
        yield "The controls were not part of this run."
        return
    yield "\n".join(answer(record))
    yield from _figure("paper-controls", drawn)
    for law in both_laws():
        yield f"Tokens per target pass, {law}, drafts of 4 tokens, nothing filled:"
        yield control_table(record, law)


def _main(record: Record, drawn: dict[str, str]) -> Iterator[str]:
    if not any(name.startswith("main/") and name != "main/plain" for name in record.cells):
        return
    yield "## Every system on every kind of text"
    yield from _figure("paper-systems", drawn)
    for task, found in sets_of(record).items():
        layers, mlps = len(found["attention"]), len(found["mlps"])
        yield (
            f"Draft & Verify's set for {task}: {layers} attention layers and {mlps} MLPs, by "
            f"{found['how']}."
        )
    for task in tasks_of(record):
        for law in both_laws():
            yield f"### {record.about['texts'][task]['title']}, {law}"
            yield main_table(record, task, law)
            if (scored := quality(record, task, law)) is not None:
                yield scored
    for law in both_laws():
        yield f"Against the controls in this setting, tokens per target pass, {law}:"
        yield compared_table(record, law)


def _speed(record: Record) -> Iterator[str]:
    if (measured := measured_table(record)) is not None:
        yield "## Speedup, measured here"
        about = record.about
        batch, prompts, repeats = (about[n] for n in ("timed_batch", "timed", "repeats"))
        over = f"the {prompts} prompts, repeats summed"
        if batch > 1:
            over = f"the {repeats} turns (one has no spread)"
        again = (
            "; some prompts stand in a turn more than once" if prompts > about["prompts"] else ""
        )
        yield (
            f"Tokens per second over plain decoding's in turn: turns of {prompts} prompts, {batch} "
            f"decoded together, {_timed_dtype(record)}, {repeats} repeats, every other one through "
            f"the systems backwards{again}. Intervals by the bootstrap over {over}. Below float32 "
            "a near-tie may make a row another."
        )
        yield measured
    if any(name.startswith("main/") and name != "main/plain" for name in record.cells):
        yield "## Speedup, modelled"
        yield MODELLED
        yield "; ".join(
            f"{d.name}: {d.bandwidth / 1e9:,.0f} GB/s, {d.flops / 1e12:,.1f} TFLOP/s"
            for d in devices_of(record.run)
        )
        for law in both_laws():
            yield f"{law.capitalize()}:"
            yield modelled_table(record, law)


def _robust(record: Record) -> Iterator[str]:
    for law in both_laws():
        found = list(robustness_tables(record, law))
        for name, text in found:
            yield f"## Calibrated on one, run on another: {name}, {law}"
            yield ROBUST
            yield text


def _ablations(record: Record, drawn: dict[str, str]) -> Iterator[str]:
    found = list(ablation_tables(record))
    if not found:
        return
    yield "## Ablations of our reading of ADMG"
    yield "Greedy, drafts of 4 tokens, all texts together, nothing filled unless it says so."
    yield from _figure("paper-bytes", drawn)
    for title, said, text in found:
        yield f"### {title}"
        yield said
        yield text


def _timed_dtype(record: Record) -> str:
    return str(record.run.get("timed_dtype", record.about["timed_dtype"]))


def _smaller(record: Record) -> str:
    if published_size(record):
        return ""
    layers = record.about["shape"]["num_layers"]
    return f"This model has {layers} layers: only a run with 13B says what they give there. "


def _figure(name: str, drawn: dict[str, str]) -> Iterator[str]:
    if name in drawn:
        yield f"![{drawn[name]}]({name}.svg)\n\n*{drawn[name]}*"
