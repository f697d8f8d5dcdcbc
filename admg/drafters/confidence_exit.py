"""Draft & Verify's adaptive draft exit (arXiv 2309.08168 and the authors' code), per sequence.

Drafting stops after a token whose probability under the draft's untempered softmax is below a
threshold; that token stays in the draft (dropping a drawn token would change the output's law).
After each verification the threshold moves so that the share of accepted tokens nears a target.
The authors carry the threshold from one prompt to the next; here each sequence has its own unless
that is asked for, so a row's numbers do not depend on the rows before it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from admg.draft_rules import ExitRule


@dataclass(slots=True)
class ConfidenceExit:
    """Threshold of one sequence, and what moves it."""

    threshold: float
    rule: ExitRule = field(default_factory=ExitRule)
    last: float = 1.0  # probability of the last drafted token
    match: float = 0.0
    verifications: int = 0

    def stops(self) -> bool:
        """Whether the draft ends with the token drafted last."""
        return self.last < self.threshold

    def update(self, drafted: int, accepted: int, longest: int) -> None:
        """After a verification of `drafted` tokens, where `longest` was the limit."""
        if not drafted:
            return
        rule = self.rule
        self.verifications += 1
        if self.verifications % rule.every:
            return
        self.match = rule.match_decay * self.match + (1 - rule.match_decay) * accepted / drafted
        if self.match < rule.target:
            wanted = self.threshold + rule.step
        else:
            wanted = self.threshold if drafted == longest else self.threshold - rule.step
        decay = rule.threshold_decay
        self.threshold = decay * self.threshold + (1 - decay) * wanted


class ExitStart:
    """Where the thresholds of an engine's sequences begin.

    Args:
        threshold: the start value.
        rule: with its `carry`, a sequence begins where the last one that ended has left it.
    """

    def __init__(self, threshold: float, rule: ExitRule) -> None:
        self._threshold, self._rule = threshold, rule

    def begin(self) -> ConfidenceExit:
        """The exit of a sequence; its match begins at nothing, carried or not."""
        return ConfidenceExit(self._threshold, self._rule)

    def end(self, exit: ConfidenceExit) -> None:
        """Tell that a sequence has ended."""
        if self._rule.carry:
            self._threshold = exit.threshold
