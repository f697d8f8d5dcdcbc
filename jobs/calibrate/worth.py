"""What a set of sub-layers is worth, told from known completions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from admg.layer_sets import LayerSet
from admg.plan import DraftPlan
from admg.teacher import Taught, Teacher
from jobs.calibrate.objective import Objective

if TYPE_CHECKING:
    from admg.config import DraftConfig
    from admg.model import Transformer
    from admg.request import Request


def worth_of(
    model: Transformer,
    requests: Sequence[Request],
    completions: Sequence[Sequence[int]],
    draft: DraftConfig,
    objective: Objective,
    stops: Sequence[int] = (),
) -> Callable[[LayerSet], float]:
    """What a set is worth behind known completions (`admg.teacher`): its modelled speedup.

    Args:
        completions: what plain decoding gives to the requests.
        draft: for its draft length and where drafts end.
        stops: tokens that `min_tokens` of a request forbid.

    Raises:
        ValueError: no completion has a token to draft.
    """
    teacher = Teacher(
        model,
        requests,
        completions,
        draft_tokens=draft.draft_tokens,
        exit_threshold=draft.exit_threshold,
        stops=stops,
    )

    def worth(layers: LayerSet) -> float:
        plan = DraftPlan(layers.attention, draft.draft_tokens, layers.mlps)
        taught = sum(teacher.judge(plan), Taught())
        return objective.speedup([plan], taught.draft_tokens, taught.tokens_per_pass)

    return worth
