"""The run: stage after stage, each cell kept as soon as it is finished.

Later stages need what earlier ones found: thresholds from similarities, sets from a search, the
best fixed set from the controls. So a stage makes its cells from the record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from admg.config import DraftConfig, SimilarityMean
from admg.draft_rules import DropRule, RandomSets
from jobs.bench.paper import variants
from jobs.bench.paper.ablations import ablation_cells, means_of
from jobs.bench.paper.calibration import level_for, ranked_set
from jobs.bench.paper.cells import Cell, described
from jobs.bench.paper.decoding import Decoder, rows_of, same, trail
from jobs.bench.paper.expected import known_cells
from jobs.bench.paper.hindsight import best_fixed, judge_of, pool_of, swapped
from jobs.bench.paper.progress import Progress
from jobs.bench.paper.record import Record
from jobs.bench.paper.searching import Find
from jobs.bench.paper.settings import Settings
from jobs.bench.paper.timing import timed_cells, timed_work

_PLAIN = "main/plain"


class Counting:
    """Everything that is counted and not timed.

    Args:
        settings: what is asked for.
        decoder: the model and the prompts.
        record: what there is already; gets what is found.
        keep: writes the record.
        progress: hears of every cell.
        search: finds Draft & Verify's sets.
    """

    def __init__(
        self,
        settings: Settings,
        decoder: Decoder,
        record: Record,
        keep: Callable[[], None],
        progress: Progress,
        search: Find,
    ) -> None:
        self._settings, self._decoder, self._record = settings, decoder, record
        self._keep, self._progress, self._search = keep, progress, search
        self._layers = decoder.model.config.num_layers

    def run(self) -> None:
        """All stages that were asked for."""
        settings = self._settings
        self._expect()
        for kind in means_of(settings):
            self._calibrate(kind)
        for task in settings.tasks:
            self._find_set(task)
        self._decode(variants.plain_cell(settings))
        self._decode_all(variants.main_cells(settings, self._layers, self.found()))
        self._decode_all(variants.control_cells(settings, self._layers, self._ranked()))
        for share in settings.sizes.levels:
            count = variants.wanted_layers(share, self._layers)
            self._decode_all(self._pool(count))
            for task in settings.tasks:
                self._swap(count, task)
        self._decode_all(variants.best_fixed_cells(settings, self._best()))
        self._decode_all(self._ablations())

    def _expect(self) -> None:
        """Tell how much is ahead: the cells of all stages, whatever will be found on the way."""
        settings = self._settings
        self._announce(known_cells(settings, self._layers))
        for name, task, _ in timed_cells(settings, self._record):
            self._progress.expect(name, timed_work(settings, self._decoder.tasks[task]))

    def _announce(self, cells: Sequence[Cell]) -> list[Cell]:
        """Those of the cells that were asked for and are not there."""
        asked = (self._settings.sections, self._settings.cells)
        wanted = [c for c in cells if c.wanted(*asked) and c.name not in self._record.cells]
        for cell in wanted:
            requests = self._decoder.requests(cell)
            self._progress.expect(cell.name, sum(r.sampling.max_tokens for r in requests))
        return wanted

    def found(self) -> variants.Calibrated:
        """What there is so far to make drafters of."""
        whole, half = (self._thresholds(variants.SHARE / parts) for parts in (1, 2))
        return variants.Calibrated(self._sets(), whole, half, self._best())

    def _thresholds(self, share: float) -> dict[str, float]:
        wanted = variants.wanted_layers(share, self._layers)
        rule = DropRule(threshold=0.0)
        return {
            task: level_for(rows, wanted, rule) for task, rows in self._similarities("mean").items()
        }

    def _sets(self) -> dict[str, DropRule]:
        cells = {t: self._record.cells.get(f"search/{t}") for t in self._settings.tasks}
        return {
            task: variants.fixed_set(cell["attention"], cell["mlps"])
            for task, cell in cells.items()
            if cell is not None
        }

    def _calibrate(self, kind: SimilarityMean) -> None:
        name = f"calibration/{kind}"
        if name in self._record.cells:
            return
        self._progress.begin(name)
        draft = DraftConfig(similarity=kind)
        found = {
            task: self._decoder.similarities(self._decoder.tasks[task].held_out, draft)
            for task in self._settings.tasks
        }
        rounded = {t: [[round(v, 6) for v in row] for row in rows] for t, rows in found.items()}
        self._store(name, {"similarities": rounded})

    def _similarities(self, kind: SimilarityMean) -> dict[str, list[list[float]]]:
        found: dict[str, list[list[float]]] = self._record.cells[f"calibration/{kind}"][
            "similarities"
        ]
        return found

    def _find_set(self, task: str) -> None:
        name = f"search/{task}"
        if name in self._record.cells or not self._settings.searches:
            return
        self._progress.begin(name)
        self._store(name, self._search(self._decoder.tasks[task]))

    def _ranked(self) -> dict[str, dict[int, tuple[int, ...]]]:
        counts = [
            variants.wanted_layers(share, self._layers) for share in self._settings.sizes.levels
        ]
        return {
            task: {count: ranked_set(rows, count) for count in counts}
            for task, rows in self._similarities("mean").items()
        }

    def _pool(self, count: int) -> list[Cell]:
        """Further fixed sets to choose the best of in hindsight."""
        cell = self._record.cells.get(f"control/{count}/admg")
        if cell is None:
            return []
        chosen = [s for rows in cell["rows"].values() for s in rows["dropped"]]
        known = {by_count[count] for by_count in self._ranked().values()}
        found = pool_of(chosen, known, RandomSets(count, seed=self._settings.seed), self._layers)
        return [
            variants.fixed_control(self._settings, count, f"pool@{i}", layers)
            for i, layers in enumerate(found)
        ]

    def _swap(self, count: int, task: str) -> None:
        """Improve a task's best fixed set on the prompts that it is judged on, and count that."""
        best = best_fixed(self._record.cells, count, task)
        name = f"control/{count}/swapped@{task}"
        start = [] if best is None else self._record.cells[best]["draft"]["drop"]["attention"]
        cell = variants.fixed_control(self._settings, count, f"swapped@{task}", start, (task,))
        asked = (self._settings.sections, self._settings.cells)
        if best is None or not cell.wanted(*asked) or name in self._record.cells:
            return
        requests = [r for r in self._decoder.requests(cell) if "/greedy/" in r.key]
        done = self._decoder.decode(variants.PLAIN, requests)
        completions = [done[r.key].token_ids for r in requests]
        worth = judge_of(self._decoder, requests, completions)
        allowed = DropRule(count=0).allowed(self._layers)
        sizes = (self._settings.sizes.swaps, self._settings.seed)
        found = swapped(start, allowed, worth, *sizes)
        self._decode(
            variants.fixed_control(self._settings, count, f"swapped@{task}", found, (task,))
        )

    def _best(self) -> dict[str, DropRule]:
        count = variants.wanted_layers(variants.SHARE, self._layers)
        found = {}
        for task in self._settings.tasks:
            name = best_fixed(self._record.cells, count, task)
            if name is not None:
                layers = self._record.cells[name]["draft"]["drop"]["attention"]
                found[task] = variants.fixed_set(layers)
        return found

    def _ablations(self) -> list[Cell]:
        tasks = [self._decoder.tasks[t] for t in self._settings.tasks]
        sizes = self._settings.sizes
        lengths = [len(p) + sizes.short for t in tasks for p in t.prompts[: sizes.ablated]]
        pooled = {
            kind: [row for rows in self._similarities(kind).values() for row in rows]
            for kind in means_of(self._settings)
        }
        return ablation_cells(self._settings, self._layers, sum(lengths) / len(lengths), pooled)

    def _decode_all(self, cells: Sequence[Cell]) -> None:
        for cell in self._announce(cells):
            self._decode(cell)

    def _decode(self, cell: Cell) -> None:
        if cell.name in self._record.cells:
            return
        self._progress.begin(cell.name)
        requests = self._decoder.requests(cell)
        done = self._decoder.decode(cell.draft, requests)
        trails: dict[str, list[list[int]]] = {}
        rows = {}
        for task in cell.tasks:
            for law in cell.laws:
                place = f"{task}/{law}"
                mine = [(r, done[r.key]) for r in requests if r.key.startswith(f"{place}/")]
                if cell.whole:
                    trails[place] = [trail(c.token_ids) for _, c in mine]
                    plain, ended = trails[place], [c.finish_reason for _, c in mine]
                else:
                    known = self._record.cells[_PLAIN]
                    plain, ended = known["trails"][place], known["rows"][place]["ended"]
                identical = [
                    same(c, p, e, r.sampling.max_tokens)
                    for (r, c), p, e in zip(mine, plain, ended, strict=False)
                ]
                scores = self._scores(cell, task, [c.text or "" for _, c in mine])
                rows[place] = rows_of(
                    [c for _, c in mine], cell.draft, self._decoder.model, identical, scores
                ).to_dict()
        value: dict[str, Any] = {"draft": described(cell.draft), "rows": rows}
        self._store(cell.name, value | ({"trails": trails} if trails else {}))

    def _scores(self, cell: Cell, task: str, texts: Sequence[str]) -> dict[str, list[float]]:
        """Of whole texts: those of plain decoding, which drafters do not change."""
        if not cell.whole:
            return {}
        return self._decoder.tasks[task].score(texts)

    def _store(self, name: str, value: Mapping[str, Any]) -> None:
        seconds = self._progress.end(name)
        self._record.cells[name] = {**value, "seconds": round(seconds, 2)}
        self._keep()
