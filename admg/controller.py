"""The controller: plain, lookup or self-draft, and how long, by measured cost and acceptance.

For each choice the expected committed tokens of the round are divided by the modelled seconds of
its passes (`pass_cost`); the best rate wins. With acceptance a per token, a draft of k tokens
commits 1 + a + a^2 + ... + a^k tokens (Leviathan et al. 2211.17192, section 3). Plain decoding is
one of the choices and wins ties; the choice never moves a completion under shared noise.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from admg.acceptance import Acceptance, judged
from admg.drafters.ngram import Proposal
from admg.drafters.ngram_index import copy_from
from admg.pass_cost import PassCost
from admg.sequence import Sequence

# Longest drafts that are weighed against each other.
LOOKUP_LIMITS = (1, 2, 3, 4, 6, 8, 12)
# A draft must promise this much more than plain decoding: the model of the costs is only a model.
MARGIN = 1.03
# Before anything is known, by the length of the matched suffix.
LOOKUP_PRIOR = {5: 0.7, 4: 0.6, 3: 0.5, 2: 0.3}
SELF_PRIOR = 0.75
# Where a self-draft would not pay even with this acceptance, nothing is prepared for it.
OPTIMISTIC = 0.9


@dataclass(frozen=True, slots=True)
class Choice:
    """Longest draft per sequence, by drafter; all 0 is plain decoding."""

    lookup: list[int]
    own: list[int]

    @classmethod
    def plain(cls, count: int) -> Choice:
        """No drafts."""
        return cls([0] * count, [0] * count)


@dataclass(slots=True)
class Controller:
    """Chooses for one engine.

    `target` and `own` are the seconds of a target pass and of one self-draft pass; `own` None
    where there is no self-drafting.
    """

    target: PassCost
    own: PassCost | None
    lookup: dict[int, Acceptance] = field(
        default_factory=lambda: {n: Acceptance() for n in LOOKUP_PRIOR}
    )
    rounds: dict[str, int] = field(default_factory=dict)

    def choose(
        self, sequences: Seq[Sequence], proposals: Seq[Proposal | None], context: float
    ) -> Choice:
        """The choice for the next round."""
        count = len(sequences)
        plain = self.target.estimate(count, context)
        best, name, rate = Choice.plain(count), "plain", MARGIN * count / plain
        chances = [
            self._lookup_chance(s, p) if p is not None else 0.0
            for s, p in zip(sequences, proposals, strict=True)
        ]
        for most in LOOKUP_LIMITS if any(chances) else ():
            price = self.target.estimate(count, context, 1 + most) - plain
            worth = price / (count * most) * count / plain  # tokens that one draft token must bring
            lengths = [
                _length(chance, min(most, s.lookup_limit), worth)
                for s, chance in zip(sequences, chances, strict=True)
            ]
            expected = sum(map(_tokens, chances, lengths))
            reached = expected / self._seconds(count, context, lengths)
            if reached > rate:
                best, name, rate = Choice(lengths, [0] * count), "lookup", reached
        if self.own is not None:
            chances = [s.own_acceptance.rate(SELF_PRIOR) for s in sequences]
            per_pass = self.own.estimate(count, context)
            for most in range(1, max((s.draft_limit for s in sequences), default=0) + 1):
                lengths = [min(most, s.draft_limit) for s in sequences]
                seconds = most * per_pass + self._seconds(count, context, lengths)
                reached = sum(map(_tokens, chances, lengths)) / seconds
                if reached > rate:
                    best, name, rate = Choice([0] * count, lengths), "self", reached
        self.rounds[name] = self.rounds.get(name, 0) + 1
        return best

    def own_may_pay(self, most: int) -> bool:
        """Whether self-drafts of up to `most` tokens can win here, were nearly all accepted."""
        if self.own is None:
            return False
        for count in self.target.sizes:
            for context in self.target.contexts:
                plain = self.target.estimate(count, context)
                for k in range(1, most + 1):
                    seconds = k * self.own.estimate(count, context)
                    seconds += self.target.estimate(count, context, 1 + k)
                    if _tokens(OPTIMISTIC, k) / seconds > MARGIN / plain:
                        return True
        return False

    def learn(
        self, s: Sequence, proposal: Proposal | None, committed: list[int], own: tuple[int, int]
    ) -> None:
        """Take a round's outcome in.

        Args:
            s: the sequence, `committed` already among its tokens.
            proposal: what lookup proposed before the round, drafted or not.
            committed: the round's tokens.
            own: accepted and judged tokens of the self-draft.
        """
        if proposal is not None and committed:
            before = s.tokens[: len(s.tokens) - len(committed)]
            seen = judged(copy_from(before, proposal.at, len(committed)), committed)
            self.lookup[proposal.matched].see(*seen)
            s.lookup_acceptance.see(*seen)
        if own[1]:
            s.own_acceptance.see(*own)

    def _lookup_chance(self, s: Sequence, proposal: Proposal) -> float:
        shared = self.lookup[proposal.matched].rate(LOOKUP_PRIOR[proposal.matched])
        return s.lookup_acceptance.rate(shared)

    def _seconds(self, count: int, context: float, lengths: list[int]) -> float:
        # Matrix products follow all tokens of the pass, attention the longest draft of a group.
        mean, longest = 1 + sum(lengths) / count, 1 + max(lengths)
        both = [self.target.estimate(count, context, n) for n in (mean, longest)]
        return sum(both) / 2


def _tokens(chance: float, length: int) -> float:
    """Expected committed tokens of a draft: 1 + a + ... + a^length."""
    return sum(chance**i for i in range(length + 1))


def _length(chance: float, most: int, worth: float) -> int:
    """Tokens to draft: as long as the next one is likelier to be accepted than it costs."""
    length = 0
    while length < most and chance ** (length + 1) > worth:
        length += 1
    return length
