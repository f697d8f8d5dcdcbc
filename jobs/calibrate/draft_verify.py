"""`calibrate draft-verify`: a fixed set of sub-layers, searched on one half of the sample.

A trial is judged by what drafts behind known completions would be (`admg.teacher`), or by the
clock. The best sets are then decoded with on the other half of the sample, judged by the same
measure, and the best of those is the plan.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from admg.config import DraftConfig
from admg.draft_rules import DropRule
from admg.layer_sets import LayerSet
from admg.plan import DraftPlan
from admg.request import Request
from jobs.calibrate.inputs import Inputs, exit_values, write_plan
from jobs.calibrate.sample import halves
from jobs.calibrate.search import Search, Trial
from jobs.calibrate.steps import Steps
from jobs.calibrate.workbench import PLAIN, Decoded
from jobs.calibrate.worth import worth_of
from jobs.plan_file import PlanFile

CHECKED = 5
_MEASURES = {False: "modelled speedup", True: "measured tokens per second"}


@dataclass(frozen=True, slots=True)
class Checked:
    """A set that was decoded with: what it promised, and what it came to on other prompts.

    Both are by the search's measure: the modelled speedup, or tokens per second.
    `identical` is the share of the completions that are plain decoding's, token by token.
    """

    layers: LayerSet
    promised: float
    value: float
    decoded: Decoded
    identical: float


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a search: sets by what they came to, best first, and the plan of the best.

    `plain` is what plain decoding comes to by the same measure; `measured` says which it is.
    """

    checked: list[Checked]
    plan: PlanFile
    trials: int
    measured: bool
    plain: float


def storage_of(output: Path) -> Path:
    """Where a search keeps its trials: beside its plan."""
    return output.with_name(f"{output.name}.trials")


def search(inputs: Inputs, trials: int, measured: bool, say: Callable[[str], None]) -> Found:
    """Search, check the best, write the plan.

    Args:
        inputs: the sample, of which one half is searched on.
        trials: in all, those of earlier calls included.
        measured: a trial is worth the tokens per second that it decodes with, by the clock.
        say: takes lines for the user.

    Raises:
        ValueError: a sample that cannot be searched on, or a storage of another search.
    """
    requests = list(inputs.sample.requests)
    fit, other = halves(requests)
    if len(requests) == 1:
        say("The sample is one prompt: sets are checked on what they were searched on.")
    say(f"Decoding {len(requests)} prompts plainly ...")
    plain = inputs.bench.decode(requests)
    draft = inputs.config.engine.draft
    known_fit, known_other = halves(plain.tokens)
    known = (inputs.bench.model, fit, known_fit, draft, inputs.objective)
    promised = worth_of(*known, stops=inputs.bench.eos)
    if measured:
        promised = partial(_measured, inputs, fit)
    begun = Search(
        storage_of(inputs.output),
        _settings(inputs, measured),
        inputs.bench.shape.num_layers,
        inputs.config.sampling.seed,
    )
    if begun.done:
        say(f"Going on after {len(begun.done)} trials of {storage_of(inputs.output)}.")
    with Steps("trials", trials, min(len(begun.done), trials)) as steps:
        for _ in begun.run(trials, promised):
            assert begun.best is not None
            steps.step(f"best {begun.best.value:.3f}")
    say(f"Decoding {len(other)} other prompts with the {CHECKED} best sets ...")
    checked = [
        _checked(inputs, other, known_other, trial, measured) for trial in begun.top(CHECKED)
    ]
    checked.sort(key=lambda c: -c.value)
    usual = _speed(inputs.bench.decode(other, PLAIN)) if measured else 1.0
    made = _made(inputs, checked, begun, measured)
    plan = inputs.plan_file(plan_values(draft, checked[0].layers), **made)
    write_plan(plan, inputs.output)
    return Found(checked, plan, len(begun.done), measured, usual)


def _measured(inputs: Inputs, requests: list[Request], layers: LayerSet) -> float:
    return _speed(inputs.bench.decode(requests, with_set(inputs.config.engine.draft, layers)))


def _speed(done: Decoded) -> float:
    """Completion tokens per second, by the clock."""
    return sum(map(len, done.tokens)) / done.seconds


def with_set(draft: DraftConfig, layers: LayerSet) -> DraftConfig:
    """The same with a fixed set, and nothing in its holes: as Draft & Verify drafts."""
    drop = DropRule(attention=layers.attention, mlps=layers.mlps)
    return replace(draft, drop=drop, hole_filling=False)


def plan_values(draft: DraftConfig, layers: LayerSet) -> dict[str, Any]:
    """The table [draft] of a plan."""
    values: dict[str, Any] = {
        "drop_attention": list(layers.attention),
        "drop_mlps": list(layers.mlps),
        "draft_tokens": draft.draft_tokens,
        "hole_filling": False,
    }
    return values | exit_values(draft)


def _checked(
    inputs: Inputs, requests: list[Request], plain: list[list[int]], trial: Trial, measured: bool
) -> Checked:
    layers = trial.layers
    draft = with_set(inputs.config.engine.draft, layers)
    done = inputs.bench.decode(requests, draft)
    same = [ours == theirs for ours, theirs in zip(done.tokens, plain, strict=True)]
    plan = DraftPlan(layers.attention, draft.draft_tokens, layers.mlps)
    if measured:
        value = _speed(done)
    else:
        value = inputs.objective.speedup([plan], done.draft_tokens, done.tokens_per_pass)
    return Checked(layers, trial.value, value, done, sum(same) / len(same))


def _settings(inputs: Inputs, measured: bool) -> str:
    draft = inputs.config.engine.draft
    what = _by_clock(inputs) if measured else str(inputs.objective)
    return (
        f"model {inputs.identity['weights']}, prompts {inputs.sample.digest}, "
        f"{inputs.config.sampling.max_tokens} tokens, drafts of {draft.draft_tokens}, "
        f"exits {exit_values(draft) or 'off'}, {inputs.bench.model.dtype}, {what}"
    )


def _by_clock(inputs: Inputs) -> str:
    """What tokens per second depend on beside the model and the drafts."""
    import torch

    from jobs.bench.machine import machine

    here = machine(torch.get_num_threads(), str(inputs.bench.model.dtype))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else here["cpu"]
    return (
        f"tokens per second of batches of {inputs.objective.batch} on {platform.node()}, {device}, "
        f"{here['threads']} threads"
    )


def _made(inputs: Inputs, checked: list[Checked], search: Search, measured: bool) -> dict[str, Any]:
    best = checked[0]
    alone = len(inputs.sample.requests) == 1
    of = "the prompt searched on" if alone else "the half of the prompts that was not searched on"
    what = "measured tokens per second" if measured else str(inputs.objective)
    return {
        "by": "admg-batch calibrate draft-verify",
        "trials": len(search.done),
        "objective": what,
        "value": round(best.value, 4),
        "tokens_per_pass": round(best.decoded.tokens_per_pass, 4),
        "draft_acceptance_rate": round(best.decoded.acceptance_rate, 4),
        "notes": f"value, tokens_per_pass and draft_acceptance_rate are of real decoding, of {of}; "
        f"the best of {len(checked)} sets was chosen by value there, so it leans high; value is "
        f"the {_MEASURES[measured]}",
    }
