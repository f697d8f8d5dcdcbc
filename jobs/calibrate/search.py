"""The search of Draft & Verify: Bayesian optimisation over 2 L switches (arXiv 2309.08168, §4).

The authors' search is 1,000 trials of a Gaussian process over 2 L numbers, a sub-layer being left
out above one half, begun by two sets made by hand. Here it is optuna's tree-structured Parzen
estimator over 2 L switches, begun by the same two sets, scaled to the model, and by random ones of
growing size. Each trial has a seed of its own, so a search that was interrupted goes on as if it
had not been.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from admg.draft_rules import RandomSets
from admg.layer_sets import LayerSet, drawn
from jobs.published_sets import SETS

if TYPE_CHECKING:
    import optuna

# The authors' other first set, of 40 layers.
_BY_HAND = (8, 10, 15, 18, 20, *range(24, 39))
_RANDOM = 16
_STUDY = "draft-verify"
_SETTINGS = "settings"


@dataclass(frozen=True, slots=True)
class Trial:
    """A set that was tried, and what it is worth."""

    layers: LayerSet
    value: float


def first_sets(num_layers: int, seed: int) -> list[LayerSet]:
    """The sets that are tried before anything is known: none, two by hand, random ones."""

    def scaled(layers: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted({round(layer * (num_layers - 1) / 39) for layer in layers}))

    published = SETS["llama-2-13b"]
    sets = [LayerSet(()), LayerSet(scaled(_BY_HAND))]
    sets.append(LayerSet(scaled(published.attention), scaled(published.mlps)))
    inner = max(1, num_layers - 2)
    for i in range(_RANDOM):
        attention = 1 + i * inner // (2 * _RANDOM)
        rule = RandomSets(min(attention, inner), attention // 3, seed, *_kept(num_layers))
        sets.append(drawn(rule, num_layers, f"first {i}"))
    return list(dict.fromkeys(sets))


def _kept(num_layers: int) -> tuple[int, int]:
    return (1, 1) if num_layers > 2 else (0, 0)


class Search:
    """One search with its storage; it goes on from what the storage holds.

    Args:
        storage: a file that keeps the trials when the search is interrupted; None: memory alone.
        settings: what a trial's value depends on, in a line.
        num_layers: of the model.
        seed: of the whole search.

    Raises:
        ValueError: the storage is of a search with other settings, or is no storage.
    """

    def __init__(self, storage: Path | None, settings: str, num_layers: int, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._layers, self._seed = num_layers, seed
        try:
            self._study = optuna.create_study(
                storage=None if storage is None else _journal(storage),
                study_name=_STUDY,
                direction="maximize",
                load_if_exists=True,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{storage} is no storage of a search: remove it") from error
        before = self._study.user_attrs.get(_SETTINGS)
        if before is None:
            self._study.set_user_attr(_SETTINGS, settings)
        elif before != settings:
            raise ValueError(
                f"{storage} holds a search with other settings ({before}, and now {settings}): "
                "remove it, or give another --output"
            )
        self._first = first_sets(num_layers, seed)
        self.done = [
            Trial(_set_of(t.params, num_layers), t.values[0])
            for t in self._study.get_trials(deepcopy=False)
            if t.values
        ]

    @property
    def best(self) -> Trial | None:
        """The best so far; of equals the first."""
        return max(self.done, key=lambda t: t.value, default=None)

    def top(self, count: int) -> list[Trial]:
        """The best sets, each once, best first."""
        once = {t.layers: t for t in sorted(self.done, key=lambda t: t.value)}
        return sorted(once.values(), key=lambda t: -t.value)[:count]

    def run(self, trials: int, worth: Callable[[LayerSet], float]) -> Iterator[Trial]:
        """Try sets until there are `trials` in all, what was done before included."""
        import optuna

        known = {t.layers: t.value for t in self.done}
        while len(self.done) < trials:
            number = len(self.done)
            switches = _switches(self._layers)
            if number < len(self._first):
                layers = self._first[number]
                value = known[layers] = worth(layers)
                params = _params(layers, self._layers)
                made = optuna.trial.create_trial(params=params, distributions=switches, value=value)
                self._study.add_trial(made)
            else:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                    self._study.sampler = optuna.samplers.TPESampler(
                        n_startup_trials=0,
                        multivariate=True,
                        constant_liar=False,
                        seed=(self._seed * 1_000_003 + number) % 2**32,
                    )
                    asked = self._study.ask(switches)
                layers = _set_of(asked.params, self._layers)
                try:
                    if layers not in known:
                        known[layers] = worth(layers)
                except BaseException:
                    self._study.tell(asked, state=optuna.trial.TrialState.FAIL)
                    raise
                value = known[layers]
                self._study.tell(asked, value)
            self.done.append(Trial(layers, value))
            yield self.done[-1]


def _journal(path: Path) -> optuna.storages.JournalStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(path)))


def _switches(num_layers: int) -> dict[str, optuna.distributions.BaseDistribution]:
    from optuna.distributions import CategoricalDistribution

    names = [f"{kind}{i}" for kind in ("attention", "mlp") for i in range(num_layers)]
    return {name: CategoricalDistribution((False, True)) for name in names}


def _params(layers: LayerSet, num_layers: int) -> dict[str, bool]:
    return {f"attention{i}": i in layers.attention for i in range(num_layers)} | {
        f"mlp{i}": i in layers.mlps for i in range(num_layers)
    }


def _set_of(params: dict[str, bool], num_layers: int) -> LayerSet:
    return LayerSet(
        tuple(i for i in range(num_layers) if params[f"attention{i}"]),
        tuple(i for i in range(num_layers) if params[f"mlp{i}"]),
    )
