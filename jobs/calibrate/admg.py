"""`calibrate admg`: a threshold for a wanted number of layers, or for the best modelled speedup.

ADMG chooses layers anew for each prompt, by a threshold on their similarities. What a threshold
means depends on model and text, so it is found on the user's own prompts, structural rules
included: the one at which a prompt drops the wanted number on average.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

from admg.config import DraftConfig
from admg.draft_rules import DropRule
from admg.families import ModelConfig
from admg.plan import DraftPlan, choose_dropped
from admg.request import Request
from jobs.calibrate.inputs import Inputs, exit_values, write_plan
from jobs.calibrate.sample import halves
from jobs.calibrate.steps import Steps
from jobs.calibrate.workbench import Decoded
from jobs.plan_file import PlanFile

# Numbers of dropped layers that are decoded with, as shares of all layers.
SHARES = (0.07, 0.13, 0.2, 0.27, 0.33, 0.4, 0.5)
# Of a threshold, as the plan has it.
DIGITS = 6


@dataclass(frozen=True, slots=True)
class Profile:
    """Similarities of the sample's prompts, [prompt][layer]."""

    similarities: list[tuple[float, ...]]

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return len(self.similarities[0])

    def column(self, layer: int) -> list[float]:
        """One layer's similarities over the prompts."""
        return [row[layer] for row in self.similarities]

    def chosen(self, rule: DropRule) -> list[tuple[int, ...]]:
        """What each prompt drops."""
        return [choose_dropped(row, rule) for row in self.similarities]

    def mean_count(self, rule: DropRule) -> float:
        """Layers that a prompt drops on average."""
        return sum(map(len, self.chosen(rule))) / len(self.similarities)


def threshold_for(profile: Profile, count: float, rule: DropRule) -> float:
    """The threshold at which prompts drop `count` layers on average, or as near as can be.

    Between two levels where the choice changes any threshold does the same: it is in the middle.

    Raises:
        ValueError: more layers than the rule lets go.
    """
    check_count(count, profile.num_layers, rule)
    # A layer goes where the threshold reaches its similarity, and by a rule that margin earlier.
    own = {s for row in profile.similarities for s in row}
    values = sorted(own | {s + rule.margin for s in own})
    # Cuts from "everything" to "nothing"; what is dropped never grows with the threshold.
    cuts = [values[0] - 1e-6, *((a + b) / 2 for a, b in pairwise(values)), values[-1] + 1e-6]
    cuts = [round(max(-1.0, min(1.0, cut)), DIGITS) for cut in cuts]

    def dropped(cut: float) -> float:
        return profile.mean_count(at(rule, cut))

    low, high = 0, len(cuts) - 1  # dropped(cuts[low]) >= count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if dropped(cuts[middle]) >= count else (low, middle)
    return min((cuts[low], cuts[high]), key=lambda cut: (abs(dropped(cut) - count), -cut))


def check_count(count: float, num_layers: int, rule: DropRule) -> None:
    """Refuse a number of dropped layers that the model does not have.

    Raises:
        ValueError: more than the rule lets go, or fewer than none.
    """
    most = len(rule.allowed(num_layers))
    if not 0 <= count <= most:
        raise ValueError(f"--drop-count is {count:g}: it must be 0 to {most} for this model")


def check_with(drop_count: float | None) -> Callable[[DraftConfig, ModelConfig], None]:
    """`check_count` for a model whose weights are not loaded yet; None fits every model."""

    def check(draft: DraftConfig, model: ModelConfig) -> None:
        if drop_count is not None:
            check_count(drop_count, model.num_layers, draft.drop)

    return check


def at(rule: DropRule, threshold: float) -> DropRule:
    """The same rule with a threshold for its level."""
    none: dict[str, Any] = {"quantile": None, "count": None, "attention": None}
    return replace(rule, threshold=threshold, **none)


def jaccard(chosen: Sequence[tuple[int, ...]]) -> float:
    """Mean over pairs of prompts of the layers that both drop, over those that either does."""
    pairs = [(set(a), set(b)) for a, b in combinations(chosen, 2) if a or b]
    return sum(len(a & b) / len(a | b) for a, b in pairs) / len(pairs) if pairs else 1.0


@dataclass(frozen=True, slots=True)
class Level:
    """A threshold that was decoded with, and what came of it."""

    threshold: float
    chosen: list[tuple[int, ...]]
    decoded: Decoded
    speedup: float

    @property
    def mean_count(self) -> float:
        """Layers that a prompt drops on average."""
        return sum(map(len, self.chosen)) / len(self.chosen)


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The result: the profile, the levels that were decoded with, and the one that was chosen.

    `reported` is the chosen level on prompts that it was not chosen by; `chosen` is what each
    prompt of the sample drops at it.
    """

    profile: Profile
    levels: list[Level]
    best: Level
    reported: Level
    chosen: list[tuple[int, ...]]
    plan: PlanFile


def calibrate(inputs: Inputs, drop_count: float | None, say: Callable[[str], None]) -> Calibrated:
    """Find the threshold and write the plan.

    The best of several is chosen by one half of the sample and reported on the other.

    Args:
        inputs: the sample.
        drop_count: layers to drop on average; None: what models the best speedup.
        say: takes lines for the user.

    Raises:
        ValueError: a count that the model does not have.
    """
    draft = inputs.config.engine.draft
    requests = list(inputs.sample.requests)
    say(f"Looking at the layers of {len(requests)} prompts ...")
    profile = profile_of(inputs, draft)
    rows = list(zip(requests, profile.similarities, strict=True))
    fit, other = halves(rows) if drop_count is None else (rows, rows)
    if drop_count is None and len(rows) == 1:
        say("The sample is one prompt: the threshold is reported on what it was chosen by.")
    rule = replace(draft.drop, mlps=())
    if drop_count is not None:
        counts: list[float] = [drop_count]
    else:
        most = len(rule.allowed(profile.num_layers))
        counts = sorted({min(most, max(1, round(s * profile.num_layers))) for s in SHARES})
    seen = Profile([similarities for _, similarities in fit])
    thresholds = list(dict.fromkeys(threshold_for(seen, n, rule) for n in counts))
    levels = []
    with Steps("levels", len(thresholds)) as steps:
        for threshold in thresholds:
            levels.append(_level(inputs, fit, at(draft.drop, threshold)))
            steps.step(f"{levels[-1].mean_count:.1f} layers: {levels[-1].speedup:.3f}")
    best = max(levels, key=lambda level: level.speedup)
    final = at(draft.drop, best.threshold)
    reported = best if fit == other else _level(inputs, other, final)
    chosen = profile.chosen(final)
    made = _made(inputs, reported, drop_count, len(other)) | {"jaccard": round(jaccard(chosen), 4)}
    plan = inputs.plan_file(_values(draft, best.threshold), **made)
    write_plan(plan, inputs.output)
    return Calibrated(profile, levels, best, reported, chosen, plan)


def profile_of(inputs: Inputs, draft: DraftConfig) -> Profile:
    """The similarities of the sample's prompts; each is prefilled, and decoded no further."""
    asked = replace(draft, drop=DropRule(count=0))
    once = [
        replace(r, sampling=replace(r.sampling, max_tokens=1, min_tokens=0))
        for r in inputs.sample.requests
    ]
    done = inputs.bench.decode(once, asked)
    return Profile([tuple(c.stats.attention_similarity) for c in done.completions])


def _level(
    inputs: Inputs, rows: Sequence[tuple[Request, tuple[float, ...]]], rule: DropRule
) -> Level:
    draft = replace(inputs.config.engine.draft, drop=rule)
    assert rule.threshold is not None
    done = inputs.bench.decode([request for request, _ in rows], draft)
    chosen = Profile([similarities for _, similarities in rows]).chosen(rule)
    plans = [DraftPlan(c, draft.draft_tokens, tuple(rule.mlps)) for c in chosen]
    value = inputs.objective.speedup(plans, done.draft_tokens, done.tokens_per_pass)
    return Level(rule.threshold, chosen, done, value)


def _values(draft: DraftConfig, threshold: float) -> dict[str, Any]:
    values: dict[str, Any] = {
        "similarity_threshold": threshold,
        "similarity": draft.similarity,
        "draft_tokens": draft.draft_tokens,
        "hole_filling": draft.hole_filling,
    }
    values |= exit_values(draft)
    if draft.drop.mlps:
        values["drop_mlps"] = list(draft.drop.mlps)
    return values


def _made(
    inputs: Inputs, reported: Level, drop_count: float | None, prompts: int
) -> dict[str, Any]:
    wanted = "the best" if drop_count is None else f"{drop_count:g} dropped layers,"
    of = f"of {prompts} prompts"
    if drop_count is None and prompts < len(inputs.sample.requests):
        of += " that the threshold was not chosen by"
    elif drop_count is None:
        of += ", the same that the threshold was chosen by, so it leans high"
    return {
        "by": "admg-batch calibrate admg",
        "objective": f"{wanted} {inputs.objective}",
        "value": round(reported.speedup, 4),
        "tokens_per_pass": round(reported.decoded.tokens_per_pass, 4),
        "draft_acceptance_rate": round(reported.decoded.acceptance_rate, 4),
        "notes": f"{reported.mean_count:.2f} layers are dropped on average; value, "
        f"tokens_per_pass and draft_acceptance_rate are of real decoding, {of}; value is the "
        "modelled speedup; jaccard is of all prompts",
    }
