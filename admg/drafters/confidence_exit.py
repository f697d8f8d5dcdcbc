"""Draft & Verify's adaptive draft exit (arXiv 2309.08168 and the authors' code), per sequence.

Drafting stops after a token whose probability under the draft's untempered softmax is below a
threshold; that token stays in the draft (dropping a drawn token would change the output's law).
After each verification the threshold moves so that the share of accepted tokens nears a target.
The authors carry the threshold from one prompt to the next; here each sequence has its own, so a
row's numbers do not depend on the rows before it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class ConfidenceExit:
    """Threshold of one sequence; the constants are those of the authors' code."""

    threshold: float
    last: float = 1.0  # probability of the last drafted token
    match: float = 0.0
    match_decay: float = 0.5
    target: float = 0.9
    step: float = 0.01
    threshold_decay: float = 0.9

    def stops(self) -> bool:
        """Whether the draft ends with the token drafted last."""
        return self.last < self.threshold

    def update(self, drafted: int, accepted: int, longest: int) -> None:
        """After a verification of `drafted` tokens, where `longest` was the limit."""
        if not drafted:
            return
        self.match = self.match_decay * self.match + (1 - self.match_decay) * accepted / drafted
        if self.match < self.target:
            candidate = self.threshold + self.step
        else:
            candidate = self.threshold if drafted == longest else self.threshold - self.step
        self.threshold = (
            self.threshold_decay * self.threshold + (1 - self.threshold_decay) * candidate
        )
