"""Draft plans: which attention layers the draft of one sequence leaves out, and who decides.

ADMG-style, our reading (DESIGN §4.3): layers whose input and output are most alike are dropped by
a level of similarity; two structural rules then take further layers down to `margin` below it.
The paper's own thresholds and rules were not available to us.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from admg.config import DraftConfig
from admg.draft_rules import DropRule, WindowRule
from admg.layer_sets import drawn


@dataclass(frozen=True, slots=True)
class DraftPlan:
    """How a sequence drafts.

    `dropped` are the layers whose attention it leaves out, `dropped_mlps` those whose MLP, both
    ascending; `draft_tokens` is the longest draft of a round. `windowed` [L] are the KV heads of
    each layer that read a window only; empty where none does. `window_share` is what was asked for.
    """

    dropped: tuple[int, ...]
    draft_tokens: int
    dropped_mlps: tuple[int, ...] = ()
    windowed: tuple[tuple[int, ...], ...] = ()
    window_share: float = 0.0

    @classmethod
    def of(
        cls,
        similarity: Sequence[float],
        draft: DraftConfig,
        units: Sequence[Sequence[float]] | None = None,
        key: str = "",
    ) -> DraftPlan:
        """The plan of a sequence whose layers have these similarities [L], and units [L][K].

        Its `key` matters for random sets alone.
        """
        if not draft.self_drafts:
            return cls((), draft.draft_tokens)
        if draft.sets is not None:
            chosen = drawn(draft.sets, len(similarity), key)
            return cls(chosen.attention, draft.draft_tokens, chosen.mlps)
        dropped = choose_dropped(similarity, draft.drop)
        plan = cls(dropped, draft.draft_tokens, tuple(sorted(draft.drop.mlps)))
        return plan if units is None else plan.limited(units, draft.windows)

    def kv_saved(self, num_layers: int, kv_heads: int, length: int, window: int) -> float:
        """The share of a sequence's keys and values that a draft pass does not read.

        Args:
            num_layers, kv_heads: the model's.
            length: of the sequence, in tokens.
            window: keys that a limited head reads, the first ones included.
        """
        limited = sum(map(len, self.windowed))
        whole = (num_layers - len(self.dropped)) * kv_heads - limited
        read = whole * length + limited * min(length, window)
        return 1 - read / (num_layers * kv_heads * length)

    def limited(self, units: Sequence[Sequence[float]], rule: WindowRule | None) -> DraftPlan:
        """With the units of these similarities [L][K] that the rule limits."""
        if rule is None:
            return self
        assert rule.share != "auto", "the controller has chosen by now"
        windowed = choose_windowed(units, rule, self.dropped)
        return replace(self, windowed=windowed, window_share=rule.share or 0.0)


def choose_windowed(
    units: Sequence[Sequence[float]], rule: WindowRule, dropped: Sequence[int]
) -> tuple[tuple[int, ...], ...]:
    """The KV heads of each layer that the rule limits, by how little that changes.

    The share is of all units, dropped layers' included; these have none to limit.
    """
    share = rule.share if isinstance(rule.share, int | float) else 0.0
    wanted = round(share * sum(map(len, units)))
    if rule.per == "layer":
        units = [[sum(heads) / len(heads)] * len(heads) for heads in units]
        wanted = round(wanted / len(units[0])) * len(units[0])  # of whole layers
    ranked = sorted(
        (-similarity, layer, head)
        for layer, heads in enumerate(units)
        for head, similarity in enumerate(heads)
        if layer not in dropped
    )
    if rule.threshold is not None:
        level = -rule.threshold
        wanted = sum(similarity <= level for similarity, _, _ in ranked)
    chosen = [(layer, head) for _, layer, head in ranked[:wanted]]
    if not chosen:
        return ()
    return tuple(tuple(sorted(h for at, h in chosen if at == layer)) for layer in range(len(units)))


def check_layers(draft: DraftConfig, num_layers: int) -> None:
    """Refuse layers that the model does not have, and sets that need more than it has.

    Raises:
        ValueError: naming the option and the layer.
    """
    if draft.sets is not None:
        draft.sets.allowed(num_layers)
    for name, layers in (
        ("drop_attention", draft.drop.attention or ()),
        ("drop_mlps", draft.drop.mlps),
    ):
        if layers and max(layers) >= num_layers:
            raise ValueError(
                f"{name} has layer {max(layers)}: the model's layers are 0 to {num_layers - 1}"
            )


def check_count(rule: DropRule, num_layers: int) -> None:
    """Refuse to drop more attention layers than the model can do without. (Engines drop the most.)

    Raises:
        ValueError: naming the number and what it may be.
    """
    most = len(rule.allowed(num_layers))
    if rule.count is not None and rule.count > most:
        raise ValueError(
            f"drop_layers is {rule.count}: it must be at most {most}, for the model has "
            f"{num_layers} layers, of which {rule.keep_first + rule.keep_last} stay"
        )


def choose_dropped(similarity: Sequence[float], rule: DropRule) -> tuple[int, ...]:
    """The attention layers that `rule` drops, ascending.

    With a threshold the rules add to what the threshold takes. With a count or a quantile the
    number is what was asked for, rules included: the lowest level is chosen at which threshold
    and rules together stay within it, and the most alike of the rest fill it up.
    """
    if rule.attention is not None:
        return tuple(sorted(rule.attention))
    allowed = rule.allowed(len(similarity))
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
    allowed = rule.allowed(len(similarity))
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
