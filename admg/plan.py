"""Draft plans: which attention layers the draft of one sequence leaves out, and who decides.

ADMG-style, our reading (DESIGN §4.3): layers whose input and output are most alike are dropped by
a level of similarity; two structural rules then take further layers down to `margin` below it.
The paper's own thresholds and rules were not available to us.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from admg.config import DraftConfig, DropRule


@dataclass(frozen=True, slots=True)
class DraftPlan:
    """How a sequence drafts.

    `dropped` are the layers whose attention it leaves out, `dropped_mlps` those whose MLP, both
    ascending; `draft_tokens` is the longest draft of a round.
    """

    dropped: tuple[int, ...]
    draft_tokens: int
    dropped_mlps: tuple[int, ...] = ()

    @classmethod
    def of(cls, similarity: Sequence[float], draft: DraftConfig) -> DraftPlan:
        """The plan of a sequence whose layers have these similarities [L]."""
        if not draft.self_drafts:
            return cls((), draft.draft_tokens)
        dropped = choose_dropped(similarity, draft.drop)
        return cls(dropped, draft.draft_tokens, tuple(sorted(draft.drop.mlps)))


def check_layers(draft: DraftConfig, num_layers: int) -> None:
    """Refuse layers that the model does not have.

    Raises:
        ValueError: naming the option and the layer.
    """
    for name, layers in (
        ("drop_attention", draft.drop.attention or ()),
        ("drop_mlps", draft.drop.mlps),
    ):
        if layers and max(layers) >= num_layers:
            raise ValueError(
                f"{name} has layer {max(layers)}: the model's layers are 0 to {num_layers - 1}"
            )


def choose_dropped(similarity: Sequence[float], rule: DropRule) -> tuple[int, ...]:
    """The attention layers that `rule` drops, ascending.

    With a threshold the rules add to what the threshold takes. With a count or a quantile the
    number is what was asked for, rules included: the lowest level is chosen at which threshold
    and rules together stay within it, and the most alike of the rest fill it up.
    """
    if rule.attention is not None:
        return tuple(sorted(rule.attention))
    allowed = range(rule.keep_first, len(similarity) - rule.keep_last)
    if rule.threshold is not None:
        return tuple(sorted(_at_level(similarity, rule, rule.threshold)))
    share = rule.quantile if rule.quantile is not None else 0.0
    wanted = rule.count if rule.count is not None else round(share * len(similarity))
    wanted = min(wanted, len(allowed))
    ranked = sorted(allowed, key=lambda layer: (-similarity[layer], layer))
    chosen: set[int] = set()
    for layer in ranked:
        taken = _at_level(similarity, rule, similarity[layer])
        if len(taken) > wanted:
            break
        chosen = taken
    chosen.update([layer for layer in ranked if layer not in chosen][: wanted - len(chosen)])
    return tuple(sorted(chosen))


def _at_level(similarity: Sequence[float], rule: DropRule, level: float) -> set[int]:
    """Layers at or above `level`, and those that the two rules add."""
    end = len(similarity) - rule.keep_last
    allowed = range(rule.keep_first, end)
    low = level - rule.margin
    dropped = {layer for layer in allowed if similarity[layer] >= level}
    if rule.fill_gaps:
        # Rule 1: a kept layer between two dropped ones (one sweep: filled gaps open no new ones).
        dropped |= {
            layer
            for layer in allowed
            if layer - 1 in dropped and layer + 1 in dropped and similarity[layer] >= low
        }
    if rule.drop_tail:
        # Rule 2: the run that ends just before the layers that always stay.
        for layer in reversed(allowed):
            if similarity[layer] < low:
                break
            dropped.add(layer)
    return dropped
