"""Which cells a run will have, told from its settings before anything is loaded."""

from __future__ import annotations

from fnmatch import fnmatch

from jobs.bench.paper import variants
from jobs.bench.paper.ablations import ablation_cells, means_of
from jobs.bench.paper.cells import Cell
from jobs.bench.paper.hindsight import MOST_TRIED
from jobs.bench.paper.settings import Settings
from jobs.bench.paper.timing import timed_names


def known_cells(settings: Settings, num_layers: int) -> list[Cell]:
    """Those that are counted, whatever will be found on the way, but for the pools of fixed sets.

    Their drafters are stand-ins.
    """
    tasks = settings.tasks
    nothing = {task: variants.fixed_set(()) for task in tasks}
    levels = dict.fromkeys(tasks, 0.9)
    counts = [variants.wanted_layers(share, num_layers) for share in settings.sizes.levels]
    ranked: dict[str, dict[int, tuple[int, ...]]]
    ranked = {task: dict.fromkeys(counts, ()) for task in tasks}
    alike = {kind: [[0.9] * num_layers] for kind in means_of(settings)}
    return [
        variants.plain_cell(settings),
        *variants.main_cells(
            settings, num_layers, variants.Calibrated(nothing, levels, levels, nothing)
        ),
        *variants.control_cells(settings, num_layers, ranked),
        *variants.best_fixed_cells(settings, nothing),
        *ablation_cells(settings, num_layers, 1000.0, alike),
    ]


def check_patterns(settings: Settings, num_layers: int) -> None:
    """Refuse a pattern that no cell of the asked parts has.

    Raises:
        ValueError: naming it.
    """
    names = [cell.name for cell in known_cells(settings, num_layers)]
    for share in settings.sizes.levels:
        start = f"control/{variants.wanted_layers(share, num_layers)}"
        names += [f"{start}/pool@{i}" for i in range(MOST_TRIED)]
        names += [f"{start}/swapped@{task}" for task in settings.tasks]
    names += [name for name, _, _ in timed_names(settings)]
    asked = [name for name in names if name.partition("/")[0] in settings.sections]
    for pattern in settings.cells:
        if not any(fnmatch(name, pattern) for name in asked):
            raise ValueError(
                f"--cells is {pattern!r}, and no cell has such a name: it must match some, as "
                f"{asked[0]} or {asked[-1]}"
            )
