"""What a plain step costs: told by the rounds of a drafting engine, which are held up to it."""

from __future__ import annotations

from admg.drafters.draft import Draft
from admg.drafters.self_draft import SelfDrafter
from admg.pass_cost import PassCost


def plain_seconds(
    cost: PassCost, draft: Draft, context: float, seconds: float, told: bool
) -> float:
    """Seconds of a plain step of the batch that has just been decoded in another way.

    Args:
        cost: of target passes; takes the round into account if that is one pass.
        draft: the round's.
        context: mean length of its sequences, in tokens.
        seconds: of the round, without what plain decoding does not do.
        told: whether the round, if nothing was drafted in it, was a step as plain decoding makes
            it: nobody learned from it, or learning costs little.
    """
    size, drafted = len(draft.tokens), sum(map(len, draft.tokens))
    own = any(draft.drafted(i, SelfDrafter.source) for i in range(size))
    one_pass = len(cost.tokens) > 1 and not own if drafted else told
    if one_pass:
        cost.observe(size, context, seconds, 1 + drafted / size)
    return cost.estimate(size, context)
