"""The ablations: one thing changed at a time, greedy, drafts of 4 tokens, few prompts.

Every parameter of our reading of ADMG has one. Thresholds are calibrated with both rules off, so
that what a rule adds is seen as more dropped layers; counts keep the number and change the choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, Literal

from admg.config import DraftConfig, SimilarityMean
from admg.draft_rules import DropRule, WindowRule
from admg.windows import SINKS
from jobs.bench.paper.calibration import Similarities, level_for, ranked_set
from jobs.bench.paper.cells import Cell
from jobs.bench.paper.decoding import WINDOW
from jobs.bench.paper.settings import Settings
from jobs.bench.paper.variants import FIXED_TOKENS, SHARE, fixed_set, wanted_layers

_MEANS: tuple[SimilarityMean, ...] = ("mean", "last", "decay")
_BASE: dict[str, Any] = {"draft_tokens": FIXED_TOKENS, "hole_filling": False}
_NO_RULES = DropRule(threshold=0.0, fill_gaps=False, drop_tail=False)
# Shares of keys and values that a draft does not read, by different means.
_SAVED = (0.25, 0.5, 0.75)
_PER: tuple[Literal["layer", "head"], ...] = ("layer", "head")


def means_of(settings: Settings) -> tuple[SimilarityMean, ...]:
    """How similarities are averaged in this run."""
    return _MEANS if settings.sizes.every_ablation else _MEANS[:2]


def ablation_cells(
    settings: Settings,
    num_layers: int,
    mean_length: float,
    similarities: Mapping[SimilarityMean, Similarities],
) -> list[Cell]:
    """All of them.

    Args:
        mean_length: tokens of the sequences, completions included.
        similarities: of the held-out prompts of all tasks, by how they are averaged.
    """
    every = settings.sizes.every_ablation
    drafts = dict(_rules(num_layers, similarities, every))
    drafts |= _margins(num_layers, similarities["mean"], every)
    drafts |= _guards(num_layers, every)
    drafts |= _refreshed(num_layers, every)
    drafts |= _equal_bytes(num_layers, mean_length, every)
    drafts |= _whole_layers(num_layers, similarities["mean"], every)
    drafts |= _filled(num_layers, every)
    sizes = settings.sizes

    def tokens(name: str) -> int | None:
        # A plan that is made anew needs time to show what it is worth.
        return None if name.startswith("refresh/") else sizes.short

    return [
        Cell(f"ablation/{name}", draft, settings.tasks, ("greedy",), sizes.ablated, tokens(name))
        for name, draft in drafts.items()
    ]


def _rules(
    num_layers: int, similarities: Mapping[SimilarityMean, Similarities], every: bool
) -> Iterator[tuple[str, DraftConfig]]:
    shares = (SHARE, 0.4) if every else (SHARE,)
    for share, kind in product(shares, similarities):
        count = wanted_layers(share, num_layers)
        level = level_for(similarities[kind], count, _NO_RULES)
        for one, two in product((False, True), repeat=2):
            drop = DropRule(threshold=level, fill_gaps=one, drop_tail=two)
            name = (
                f"rules/threshold {count}/{kind}/{'on' if one else 'off'}/{'on' if two else 'off'}"
            )
            yield name, DraftConfig(drop=drop, similarity=kind, **_BASE)
    count = wanted_layers(SHARE, num_layers)
    for one, two in product((False, True), repeat=2) if every else ():
        drop = DropRule(count=count, fill_gaps=one, drop_tail=two)
        name = f"rules/count {count}/mean/{'on' if one else 'off'}/{'on' if two else 'off'}"
        yield name, DraftConfig(drop=drop, **_BASE)


def _margins(num_layers: int, similarities: Similarities, every: bool) -> dict[str, DraftConfig]:
    level = level_for(similarities, wanted_layers(SHARE, num_layers), _NO_RULES)
    return {
        f"margin/{margin}": DraftConfig(drop=DropRule(threshold=level, margin=margin), **_BASE)
        for margin in ((0.0, 0.005, 0.02) if every else ())
    }


def _guards(num_layers: int, every: bool) -> dict[str, DraftConfig]:
    count = wanted_layers(SHARE, num_layers)
    kept = ((0, 0), (1, 0), (0, 1), (1, 1), (2, 2)) if every else ((0, 0), (1, 1))
    return {
        f"guards/{first}/{last}": DraftConfig(
            drop=DropRule(count=count, keep_first=first, keep_last=last), **_BASE
        )
        for first, last in kept
        if first + last + count <= num_layers
    }


def _refreshed(num_layers: int, every: bool) -> dict[str, DraftConfig]:
    drop = DropRule(count=wanted_layers(SHARE, num_layers))
    found = {"refresh/never": DraftConfig(drop=drop, **_BASE)}
    for tokens in (4, 8, 16) if every else (8,):
        found[f"refresh/once after {tokens}"] = DraftConfig(drop=drop, remake_after=tokens, **_BASE)
        found[f"refresh/every {tokens}"] = DraftConfig(drop=drop, remake_every=tokens, **_BASE)
    return found


def _equal_bytes(num_layers: int, mean_length: float, every: bool) -> dict[str, DraftConfig]:
    found = {}
    # A limited head still reads its window, so more heads are limited than layers dropped.
    left = max(0.05, 1 - (SINKS + WINDOW) / mean_length)
    for share in _SAVED if every else (0.5,):
        drop = DropRule(count=wanted_layers(share, num_layers))
        limited = {
            f"limited {per}s": WindowRule(share=min(1.0, share / left), window=WINDOW, per=per)
            for per in _PER
        }
        for filled in (False, True):
            base = _BASE | {"hole_filling": filled}
            end = " filled" if filled else ""
            start = f"bytes/{share:.2f}"
            found[f"{start}/dropped layers{end}"] = DraftConfig(drop=drop, **base)
            for name, windows in limited.items():
                nothing = DropRule(count=0)
                found[f"{start}/{name}{end}"] = DraftConfig(drop=nothing, windows=windows, **base)
    return found


def _whole_layers(
    num_layers: int, similarities: Similarities, every: bool
) -> dict[str, DraftConfig]:
    found = {}
    for share in (SHARE / 2, SHARE) if every else (SHARE / 2,):
        count = wanted_layers(share, num_layers)
        layers = ranked_set(similarities, count)
        for name, mlps in (("attention alone", ()), ("whole layers", layers)):
            drop = fixed_set(layers, mlps)
            found[f"whole/{count}/{name}"] = DraftConfig(drop=drop, **_BASE)
    return found


def _filled(num_layers: int, every: bool) -> dict[str, DraftConfig]:
    found = {}
    for share in (SHARE / 2, SHARE, 0.4, 0.5) if every else (SHARE,):
        count = wanted_layers(share, num_layers)
        for filled in (False, True):
            base = _BASE | {"hole_filling": filled}
            name = f"filling/{count}/{'on' if filled else 'off'}"
            found[name] = DraftConfig(drop=DropRule(count=count), **base)
    return found
