"""Which drafters are compared: the rows of the main table, and the controls.

The published methods draft up to 12 tokens and end a draft where the model is not sure (Draft &
Verify's exit, which ADMG takes over); so do the systems of the main table. In the controls every
draft has 4 tokens, so that tokens per target pass compare the choice of layers and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from admg.config import DraftConfig
from admg.draft_rules import DropRule, ExitRule, RandomSets, SearchedSets, WindowRule
from jobs.bench.paper.cells import Cell
from jobs.bench.paper.decoding import WINDOW
from jobs.bench.paper.settings import LAWS, Settings

# As in the experiments of Draft & Verify's repository (2309.08168).
EXIT, LONGEST = 0.6, 12
# Of the controls and ablations.
FIXED_TOKENS = 4
# Chooses among drafters round by round: what a row left out in the end is not what it left out.
CHANGING = ("auto",)
# Shares of the attention layers that ADMG's thresholds are calibrated to drop.
SHARE = 0.25
# MLPs to attention layers in the published sets for Llama-2-13B: 10 to 24.
MLPS = 10 / 24

PLAIN = DraftConfig(drafter="none")
_PAPER: dict[str, Any] = {
    "draft_tokens": LONGEST,
    "exit_threshold": EXIT,
    "hole_filling": False,
}
_FIXED: dict[str, Any] = {"draft_tokens": FIXED_TOKENS, "hole_filling": False}

SYSTEMS = {
    "plain": "plain decoding",
    "draft-verify": "Draft & Verify, its set for this kind of text",
    "draft-verify-other": "Draft & Verify, its sets for other text",
    "draft-verify-carried": "Draft & Verify, threshold carried on (depends on the order)",
    "swift": "SWIFT-like, searched while decoding (depends on the order)",
    "random": "random sets of equal size",
    "best-fixed": "best fixed set in hindsight",
    "admg": "ADMG, our reading",
    "admg-other": "ADMG, thresholds for other text",
    "admg-filled": "ADMG + hole filling",
    "admg-budgets": "ADMG + hole filling + attention budgets",
    "auto": "the controller, which also looks up (depends on the clock)",
}


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What drafters were calibrated to be, by the task whose held-out prompts they are for.

    `sets` are Draft & Verify's; `thresholds` are ADMG's for a quarter of the attention layers,
    `halves` for half as many; `best` are the best fixed sets, in hindsight.
    """

    sets: Mapping[str, DropRule]
    thresholds: Mapping[str, float]
    halves: Mapping[str, float]
    best: Mapping[str, DropRule]


def wanted_layers(share: float, num_layers: int) -> int:
    """So many attention layers are that share; at least one."""
    return max(1, round(share * num_layers))


def fixed_set(attention: Sequence[int], mlps: Sequence[int] = ()) -> DropRule:
    """These sub-layers, whatever the prompt."""
    return DropRule(attention=tuple(sorted(attention)), mlps=tuple(sorted(mlps)))


def plain_cell(settings: Settings) -> Cell:
    """Plain decoding: what everything else is compared with."""
    return Cell(
        "main/plain", PLAIN, settings.tasks, tuple(LAWS), settings.sizes.prompts, whole=True
    )


def main_cells(settings: Settings, num_layers: int, found: Calibrated) -> list[Cell]:
    """The systems of the main table but for the best fixed set, and of the robustness table."""
    drafts: dict[str, DraftConfig] = {}
    for task, chosen in found.sets.items():
        drafts[f"draft-verify@{task}"] = DraftConfig(drop=chosen, **_PAPER)
    for i in range(settings.sizes.random_sets):
        drafts[f"random@{i}"] = random_draft(settings, num_layers, i)
    for task in found.thresholds:
        drafts[f"admg@{task}"] = admg_draft(found, task)
    drafts["auto"] = auto_draft(num_layers)
    sizes = (tuple(LAWS), settings.sizes.prompts)
    cells = [Cell(f"main/{name}", draft, settings.tasks, *sizes) for name, draft in drafts.items()]
    # On the text that they are calibrated on, or search on, alone.
    for task in settings.tasks:
        own = own_drafts(settings, num_layers, found, task)
        cells += [Cell(f"main/{name}@{task}", d, (task,), *sizes) for name, d in own.items()]
    return cells


def own_drafts(
    settings: Settings, num_layers: int, found: Calibrated, task: str
) -> dict[str, DraftConfig]:
    """The systems that see no other text than that of a task."""
    drafts = {"swift": swift_draft(settings, num_layers)}
    if task in found.sets:
        carried = ExitRule(carry=True)
        drafts["draft-verify-carried"] = DraftConfig(drop=found.sets[task], exit=carried, **_PAPER)
    drafts["admg-filled"] = replace(admg_draft(found, task), hole_filling=True)
    half = DropRule(threshold=found.halves[task])
    windows = WindowRule(share=0.5, window=WINDOW)
    drafts["admg-budgets"] = replace(drafts["admg-filled"], drop=half, windows=windows)
    return drafts


def admg_draft(found: Calibrated, task: str) -> DraftConfig:
    """ADMG in the published setting, its threshold calibrated on a task."""
    return DraftConfig(drop=DropRule(threshold=found.thresholds[task]), **_PAPER)


def auto_draft(num_layers: int) -> DraftConfig:
    """The controller."""
    drop = DropRule(count=wanted_layers(SHARE, num_layers))
    return DraftConfig(drafter="auto", drop=drop, lookup_store_tokens=0)


def random_draft(settings: Settings, num_layers: int, i: int) -> DraftConfig:
    """The i-th draw of random sets, one a prompt."""
    sets = RandomSets(wanted_layers(SHARE, num_layers), seed=_seed(settings, i))
    return DraftConfig(sets=sets, **_PAPER)


def swift_draft(settings: Settings, num_layers: int) -> DraftConfig:
    """A search while decoding, for as many attention layers, and MLPs in the published ratio."""
    count = wanted_layers(SHARE, num_layers)
    return DraftConfig(sets=SearchedSets(count, round(count * MLPS), seed=settings.seed), **_PAPER)


def best_fixed_cells(settings: Settings, best: Mapping[str, DropRule]) -> list[Cell]:
    """The best fixed set of each task, in the setting of the main table."""
    return [
        Cell(
            f"main/best-fixed@{task}",
            DraftConfig(drop=rule, **_PAPER),
            (task,),
            tuple(LAWS),
            settings.sizes.prompts,
        )
        for task, rule in best.items()
    ]


def control_cells(
    settings: Settings, num_layers: int, ranked: Mapping[str, Mapping[int, Sequence[int]]]
) -> list[Cell]:
    """Per-input choice, random sets, and fixed sets, all of equal size and draft length.

    Args:
        ranked: by task and number of layers, the set that the mean similarity of the task's
            held-out prompts chooses: the same measure, but one set for all inputs.
    """
    every = (settings.tasks, tuple(LAWS), settings.sizes.prompts, settings.sizes.short)
    cells = []
    for share in settings.sizes.levels:
        count = wanted_layers(share, num_layers)
        per_input = DraftConfig(drop=DropRule(count=count), **_FIXED)
        cells.append(Cell(f"control/{count}/admg", per_input, *every))
        for i in range(settings.sizes.random_sets):
            sets = RandomSets(count, seed=_seed(settings, i))
            cells.append(
                Cell(f"control/{count}/random@{i}", DraftConfig(sets=sets, **_FIXED), *every)
            )
        for task, by_count in ranked.items():
            cells.append(fixed_control(settings, count, f"ranked@{task}", by_count[count]))
    return cells


def fixed_control(
    settings: Settings,
    count: int,
    name: str,
    layers: Sequence[int],
    tasks: tuple[str, ...] | None = None,
) -> Cell:
    """One fixed set in the setting of the controls, on some tasks (None: all)."""
    draft = DraftConfig(drop=fixed_set(layers), **_FIXED)
    sizes = settings.sizes
    every = (tasks or settings.tasks, tuple(LAWS), sizes.prompts, sizes.short)
    return Cell(f"control/{count}/{name}", draft, *every)


def timed_drafts(
    settings: Settings, num_layers: int, found: Calibrated, task: str
) -> dict[str, DraftConfig]:
    """The systems that are timed on a task, plain decoding first; one of each kind."""
    drafts = {"plain": PLAIN}
    if task in found.sets:
        drafts["draft-verify"] = DraftConfig(drop=found.sets[task], **_PAPER)
    other = next((t for t in found.sets if t != task), None)
    if other is not None:
        drafts["draft-verify-other"] = DraftConfig(drop=found.sets[other], **_PAPER)
    own = own_drafts(settings, num_layers, found, task)
    drafts["swift"] = own["swift"]
    drafts["random"] = random_draft(settings, num_layers, 0)
    if task in found.best:
        drafts["best-fixed"] = DraftConfig(drop=found.best[task], **_PAPER)
    drafts["admg"] = admg_draft(found, task)
    drafts["admg-filled"] = own["admg-filled"]
    drafts["admg-budgets"] = own["admg-budgets"]
    drafts["auto"] = auto_draft(num_layers)
    return drafts


def _seed(settings: Settings, i: int) -> int:
    return 1000 * settings.seed + i
