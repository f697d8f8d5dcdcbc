"""How likely the next draft token is to be accepted: running shares with a prior.

A trial is one draft token that the target has judged; tokens after the first rejected one are not
judged and count nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

# Trials that a prior weighs as much as.
PRIOR_TRIALS = 4.0
# What a sequence's or a drafter's older trials keep of their weight at each new observation.
DECAY = 0.95


@dataclass(slots=True)
class Acceptance:
    """Accepted over judged draft tokens, the latest counting most."""

    accepted: float = 0.0
    judged: float = 0.0

    def see(self, accepted: int, judged: int) -> None:
        """Take one round in."""
        self.accepted = DECAY * self.accepted + accepted
        self.judged = DECAY * self.judged + judged

    def rate(self, prior: float) -> float:
        """The share, drawn towards `prior` as long as there is little to go by."""
        return (self.accepted + PRIOR_TRIALS * prior) / (self.judged + PRIOR_TRIALS)


def judged(proposed: list[int], committed: list[int]) -> tuple[int, int]:
    """Accepted and judged tokens of a proposal, whether or not it was drafted.

    What was committed tells what the target would have said to the proposal's first tokens.
    """
    pairs = list(zip(proposed, committed, strict=False))
    accepted = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    return accepted, min(accepted + 1, len(pairs))
