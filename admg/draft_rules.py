"""What a draft leaves out, and where it ends: rules as values, without tensors.

Every rejection is a `ValueError` of one sentence that names the field, the value and what is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Shares of limited KV heads that the controller weighs against each other.
WINDOW_SHARES = (0.0, 0.5, 0.75, 0.9)


def refuse(condition: bool, name: str, value: object, right: str) -> None:
    """Raise what a value outside its range raises.

    Raises:
        ValueError: the condition holds.
    """
    if condition:
        raise ValueError(f"{name} is {value!r}: it must be {right}")


@dataclass(frozen=True, slots=True)
class DropRule:
    """Which layers' attention a draft leaves out, by similarity (DESIGN §4.3, our reading).

    Exactly one of `threshold` (similarity at or above it), `quantile` (that share of the layers),
    `count` and `attention` (these layers, whatever the prompt) chooses the level. Rule 1
    (`fill_gaps`) and rule 2 (`drop_tail`) take further layers whose similarity is at most `margin`
    below that level. The first `keep_first` and the last `keep_last` layers always stay, unless
    they are named. `mlps` are the layers whose MLP every draft leaves out: with `attention` a fixed
    set, as Draft & Verify (2309.08168) searches for.

    Raises:
        ValueError: none or several levels given, or a value outside its range.
    """

    threshold: float | None = None
    quantile: float | None = None
    count: int | None = None
    attention: tuple[int, ...] | None = None
    mlps: tuple[int, ...] = ()
    margin: float = 0.005
    fill_gaps: bool = True
    drop_tail: bool = True
    keep_first: int = 1
    keep_last: int = 1

    def __post_init__(self) -> None:
        levels = ("threshold", "quantile", "count", "attention")
        given = [n for n in levels if getattr(self, n) is not None]
        refuse(len(given) != 1, "drop rule", given, f"exactly one of {', '.join(levels)}")
        if self.threshold is not None:
            refuse(not -1 <= self.threshold <= 1, "threshold", self.threshold, "a cosine, -1 to 1")
        if self.quantile is not None:
            refuse(not 0 <= self.quantile <= 1, "quantile", self.quantile, "a share, 0 to 1")
        if self.count is not None:
            refuse(self.count < 0, "count", self.count, "0 or more")
        for name in ("attention", "mlps"):
            layers = getattr(self, name) or ()
            wrong = min(layers, default=0) < 0 or len(set(layers)) < len(layers)
            refuse(wrong, name, list(layers), "layers from 0 on, each once")
        refuse(not 0 <= self.margin <= 2, "margin", self.margin, "between 0 and 2")
        refuse(self.keep_first < 0, "keep_first", self.keep_first, "0 or more")
        refuse(self.keep_last < 0, "keep_last", self.keep_last, "0 or more")

    def allowed(self, num_layers: int) -> range:
        """The layers that may be left out by their similarity."""
        return range(self.keep_first, num_layers - self.keep_last)


@dataclass(frozen=True, slots=True)
class WindowRule:
    """Which KV heads a draft limits to the first 4 keys and the last `window` (DESIGN §4.4).

    Exactly one of `share` (of all (layer, KV head) units, those that change least) and `threshold`
    (units whose limit leaves a similarity at or above it) chooses them. The share "auto" is the
    controller's choice among `WINDOW_SHARES`. With `per` "layer" all heads of a layer are limited
    or none, by their mean similarity: coarser, for comparison.

    Raises:
        ValueError: none or both given, or a value outside its range.
    """

    share: float | Literal["auto"] | None = None
    threshold: float | None = None
    window: int = 64
    per: Literal["head", "layer"] = "head"

    def __post_init__(self) -> None:
        refuse(self.per not in ("head", "layer"), "window_per", self.per, "head or layer")
        given = [n for n in ("share", "threshold") if getattr(self, n) is not None]
        refuse(len(given) != 1, "window rule", given, "exactly one of share, threshold")
        if self.share is not None and self.share != "auto":
            refuse(not 0 <= self.share <= 1, "window_share", self.share, "a share, 0 to 1")
        if self.threshold is not None:
            level = self.threshold
            refuse(not -1 <= level <= 1, "window_threshold", level, "a cosine, -1 to 1")
        refuse(not 1 <= self.window <= 4096, "window", self.window, "1 to 4096 keys")


@dataclass(frozen=True, slots=True)
class ExitRule:
    """How Draft & Verify's draft exit adapts (arXiv 2309.08168, the authors' code).

    A draft ends with the first token whose probability is below a threshold. Every `every`
    verifications a running `match` takes in the accepted share of the draft, its past weighing
    `match_decay`; the threshold is then drawn, its past weighing `threshold_decay`, towards a value
    that is `step` higher where the match is below `target`, and else `step` lower, unless the
    draft was as long as it may be. A `step` of 0 leaves the threshold where it is. With `carry` a
    sequence begins with the threshold that the last one ended with, as the authors' runs do, so
    its statistics depend on the rows before it.

    Raises:
        ValueError: a value outside its range, by name.
    """

    every: int = 1
    match_decay: float = 0.5
    target: float = 0.9
    step: float = 0.01
    threshold_decay: float = 0.9
    carry: bool = False

    def __post_init__(self) -> None:
        refuse(self.every < 1, "exit_every", self.every, "at least 1")
        for name in ("match_decay", "target", "step", "threshold_decay"):
            value = getattr(self, name)
            refuse(not 0 <= value <= 1, f"exit_{name}", value, "0 to 1")


@dataclass(frozen=True, slots=True)
class _LayerSets:
    """Sets of `attention` and `mlps` sub-layers, outside the first and the last layers kept."""

    attention: int
    mlps: int = 0
    seed: int = 0
    keep_first: int = 1
    keep_last: int = 1

    def __post_init__(self) -> None:
        for name in ("attention", "mlps", "seed", "keep_first", "keep_last"):
            value = getattr(self, name)
            refuse(value < 0, f"sets.{name}", value, "0 or more")
        refuse(not self.attention + self.mlps, "sets", (0, 0), "of at least one sub-layer")

    def allowed(self, num_layers: int) -> range:
        """The layers that sets are made of.

        Raises:
            ValueError: the model has too few of them.
        """
        layers = range(self.keep_first, num_layers - self.keep_last)
        for name in ("attention", "mlps"):
            wanted = getattr(self, name)
            refuse(wanted > len(layers), f"sets.{name}", wanted, f"at most {len(layers)} here")
        return layers


@dataclass(frozen=True, slots=True)
class RandomSets(_LayerSets):
    """For each sequence a set drawn by `seed` and its key: the control that chooses nothing.

    Raises:
        ValueError: a value outside its range, by name.
    """


@dataclass(frozen=True, slots=True)
class SearchedSets(_LayerSets):
    """One set for all sequences, searched for while they are decoded, as SWIFT does (2410.06916).

    Our form of it: a trial set drafts until `trial_tokens` of its tokens are judged; if more of
    them were accepted than of the best set so far, it takes that one's place. A trial is a random
    set with probability `explore`, else the best set with one sub-layer swapped. The search ends
    after `max_trials`, or once the best set's accepted share is `good_enough`.

    Raises:
        ValueError: a value outside its range, by name.
    """

    trial_tokens: int = 64
    explore: float = 0.3
    good_enough: float = 0.95
    max_trials: int = 300

    def __post_init__(self) -> None:
        _LayerSets.__post_init__(self)
        refuse(self.trial_tokens < 1, "sets.trial_tokens", self.trial_tokens, "at least 1")
        refuse(not 0 <= self.explore <= 1, "sets.explore", self.explore, "0 to 1")
        refuse(not 0 <= self.good_enough <= 1, "sets.good_enough", self.good_enough, "0 to 1")
        refuse(self.max_trials < 0, "sets.max_trials", self.max_trials, "0 or more")


LayerSets = RandomSets | SearchedSets
