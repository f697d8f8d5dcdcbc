"""Which choice stands: estimates that are noise must not turn it over from round to round.

Drafts are taken up on evidence and given up at once. Evidence is a cumulative sum (Page, 1954) of
what drafting promises above plain decoding and its margin, so that one round of much and many
rounds of little count alike, and noise around zero hardly ever. A switch costs nothing, so a real
change is followed within a few rounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# A surplus of this much (as a logarithm) in one round takes drafts up, or less in several rounds.
ENOUGH = 0.2
# What a round's surplus must be above to count at all.
ALLOWANCE = 0.01
# In this many rounds without a draft it is tried in a few, where it is not far from paying: what
# is never tried is never known better than by the warm-up. It costs a thousandth at the most.
EXPLORE_EVERY = 1024
EXPLORE_ROUNDS = 4
NEAR = 0.75
# Another share of limits must be better by this much than the one that plans have now.
SHARE_MARGIN = 1.03


@dataclass(slots=True)
class Standing:
    """Whether the present choice is to draft; None before the first one."""

    drafts: bool | None = None
    evidence: float = 0.0
    idle: int = 0

    def choose(self, drafted: float, plain: float, margin: float, kept: float) -> bool:
        """Whether to draft in this round.

        Args:
            drafted, plain: tokens per second that each promises.
            margin: how much more than plain decoding drafts must promise to be taken up.
            kept: how much more they must promise to go on; at most `margin`.
        """
        if self.drafts is None:
            self.drafts = drafted > margin * plain
        elif self.drafts:
            self.drafts = drafted > kept * plain
        elif drafted > 0:
            surplus = math.log(drafted / (margin * plain)) - ALLOWANCE
            self.evidence = max(0.0, self.evidence + surplus)
            self.drafts = self.evidence >= ENOUGH
        if self.drafts:
            self.evidence, self.idle = 0.0, 0
            return True
        return self._explores(drafted > NEAR * plain)

    def _explores(self, near: bool) -> bool:
        self.idle += near
        if self.idle >= EXPLORE_EVERY + EXPLORE_ROUNDS:
            self.idle = 0
        return near and self.idle >= EXPLORE_EVERY


def keep_share(present: float | None, rates: dict[float, float]) -> float:
    """The best of some shares by their rates, or the present one where that is about as good."""
    best = max(rates, key=rates.__getitem__)
    if present is None or present not in rates:
        return best
    return best if rates[best] > SHARE_MARGIN * rates[present] else present
