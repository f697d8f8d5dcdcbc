"""How likely the next draft token is to be accepted: running shares with a prior.

A trial is one draft token that the target has judged; tokens after the first rejected one are not
judged and count nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# Trials that a prior weighs as much as.
PRIOR_TRIALS = 4.0
# What a sequence's or a drafter's older trials keep of their weight at each new observation.
DECAY = 0.95


@dataclass(slots=True)
class Share:
    """Accepted over judged draft tokens, the latest counting most."""

    accepted: float = 0.0
    judged: float = 0.0

    def see(self, accepted: int, judged: int) -> None:
        """Take one round in."""
        self.accepted = DECAY * self.accepted + accepted
        self.judged = DECAY * self.judged + judged

    def value(self, prior: float) -> float:
        """The share, drawn towards `prior` as long as there is little to go by."""
        return (self.accepted + PRIOR_TRIALS * prior) / (self.judged + PRIOR_TRIALS)


@dataclass(frozen=True, slots=True)
class Chance:
    """Probability that a draft's first token is accepted, and each later one after that."""

    first: float
    later: float

    def tokens(self, length: int) -> float:
        """Expected committed tokens of a draft: 1 + first (1 + later + ... )."""
        return 1 + sum(self.first * self.later**i for i in range(length))

    def reaches(self, length: int) -> float:
        """Probability that all `length` tokens are accepted."""
        return self.first * self.later ** (length - 1) if length else 1.0

    def length(self, most: int, worth: float) -> int:
        """Tokens to draft: as long as the next one is likelier to be accepted than it costs."""
        length = 0
        while length < most and self.reaches(length + 1) > worth:
            length += 1
        return length


@dataclass(slots=True)
class Acceptance:
    """The shares of first and of later tokens: who copied one token right copies on."""

    first: Share = field(default_factory=Share)
    later: Share = field(default_factory=Share)

    def see(self, accepted: int, judged: int) -> None:
        """Take one round in."""
        if judged:
            self.first.see(min(accepted, 1), 1)
        if judged > 1:
            self.later.see(accepted - 1, judged - 1)

    def chance(self, prior: Chance) -> Chance:
        """What to expect, drawn towards `prior`."""
        return Chance(self.first.value(prior.first), self.later.value(prior.later))


def judged(proposed: list[int], committed: list[int]) -> tuple[int, int]:
    """Accepted and judged tokens of a proposal, whether or not it was drafted.

    What was committed tells what the target would have said to the proposal's first tokens.
    """
    pairs = list(zip(proposed, committed, strict=False))
    accepted = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    return accepted, min(accepted + 1, len(pairs))
