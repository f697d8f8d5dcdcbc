"""The best fixed set in hindsight: chosen on the very prompts that it is then judged on.

No fixed set could have been known to be so good, so what beats it beats fixed sets. It is looked
for among sets of one size: those that similarities choose, those that ADMG chose most often, random
ones, and what swapping layers of the best of them leads to.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from admg.draft_rules import RandomSets
from admg.layer_sets import drawn
from admg.plan import DraftPlan
from admg.request import Request
from admg.teacher import Taught, Teacher
from jobs.bench.paper.calibration import frequent_sets
from jobs.bench.paper.decoding import Decoder
from jobs.bench.paper.rows import Rows, joined
from jobs.bench.paper.settings import LAWS
from jobs.bench.paper.variants import FIXED_TOKENS

_KINDS = ("ranked@", "pool@", "swapped@")
# Distinct sets that ADMG chose most often, and random ones, that are tried as fixed sets.
_FREQUENT, _DRAWN = 3, 2
MOST_TRIED = _FREQUENT + _DRAWN


def best_fixed(
    cells: Mapping[str, Any], count: int, task: str, laws: Sequence[str] = tuple(LAWS)
) -> str | None:
    """The name of the control whose fixed set commits most tokens per pass on a task."""
    found: dict[str, float] = {}
    for name, cell in cells.items():
        if name.startswith(tuple(f"control/{count}/{kind}" for kind in _KINDS)):
            places = [f"{task}/{law}" for law in laws]
            if all(place in cell["rows"] for place in places):
                rows = joined([Rows.from_dict(cell["rows"][place]) for place in places])
                found[name] = sum(rows.committed) / max(1, sum(rows.passes))
    return max(found, key=lambda name: (found[name], name)) if found else None


def pool_of(
    chosen: Sequence[Sequence[int]],
    known: Collection[tuple[int, ...]],
    rule: RandomSets,
    num_layers: int,
) -> list[tuple[int, ...]]:
    """Fixed sets to try: those chosen most often for single prompts, and random ones by a rule.

    Those that are `known` are left out.
    """
    random = [drawn(rule, num_layers, f"fixed {i}").attention for i in range(_DRAWN)]
    found = dict.fromkeys([*frequent_sets(chosen, _FREQUENT), *random])
    return [layers for layers in found if layers not in known]


def swapped(
    start: Sequence[int],
    allowed: Sequence[int],
    worth: Callable[[tuple[int, ...]], float],
    swaps: int,
    seed: int,
) -> tuple[int, ...]:
    """The best set that `swaps` tries of swapping one layer, each from the best so far, lead to."""
    best = tuple(sorted(start))
    others = [layer for layer in allowed if layer not in best]
    if not others or not best:
        return best
    drawing, value, tried = random.Random(seed), worth(best), {best}
    for _ in range(swaps):
        out = drawing.choice(best)
        into = drawing.choice([layer for layer in allowed if layer not in best])
        new = tuple(sorted({*best, into} - {out}))
        if new in tried:
            continue
        tried.add(new)
        if (found := worth(new)) > value:
            best, value = new, found
    return best


def judge_of(
    decoder: Decoder, requests: Sequence[Request], completions: Sequence[list[int]]
) -> Callable[[tuple[int, ...]], float]:
    """Tokens per target pass of drafts that leave out a set, told from known completions."""
    teacher = Teacher(decoder.model, requests, completions, draft_tokens=FIXED_TOKENS)

    def worth(layers: tuple[int, ...]) -> float:
        taught = sum(teacher.judge(DraftPlan(layers, FIXED_TOKENS)), Taught())
        return taught.tokens_per_pass

    return worth
