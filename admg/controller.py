"""The controller: plain, lookup or self-draft, and how long, by measured cost and acceptance.

For each choice the expected committed tokens of the round are divided by the modelled seconds of
its passes (`pass_cost`); the best rate wins. The expectation is that of Leviathan et al.
(2211.17192, section 3), with an acceptance of its own for a draft's first token. Plain decoding is
one of the choices and wins ties; the choice never moves a completion under shared noise. Between
self-drafts and none the present choice stays until another is clearly better (`standing`); lookup
is judged afresh in every round, for what it finds is another thing each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from admg.acceptance import Acceptance, Chance, judged
from admg.drafters.draft import Draft
from admg.drafters.ngram import Proposal
from admg.explanation import Explanation
from admg.pass_cost import PassCost
from admg.sequence import Sequence
from admg.standing import Standing, keep_share

NONE = Chance(0.0, 0.0)
# Longest drafts that are weighed against each other.
LOOKUP_LIMITS = (1, 2, 3, 4, 6, 8, 12)
# A draft must promise this much more than plain decoding: the model of the costs is only a model.
MARGIN = 1.03
# And this much more on a CPU in a batch of `FULL` and above, less in smaller ones: rows that end at
# various times leave extents of different sizes there, and all later rounds cost more
# (deploy/records).
STAGGERED = 0.35
FULL = 16
# Before anything is known, by (found in the store, length of the matched suffix).
LOOKUP_PRIOR = {
    (False, 5): Chance(0.7, 0.8),
    (False, 4): Chance(0.5, 0.7),
    (False, 3): Chance(0.4, 0.7),
    (False, 2): Chance(0.3, 0.6),
    (True, 5): Chance(0.6, 0.8),
    (True, 4): Chance(0.4, 0.7),
    (True, 3): Chance(0.2, 0.6),
}
SELF_PRIOR = Chance(0.75, 0.75)
# How much less of it when all KV heads are limited (deploy/records/budgets.md).
LIMITED = 0.13
# Where a self-draft would not pay even with this acceptance, nothing is prepared for it.
OPTIMISTIC = Chance(0.9, 0.9)
# How much a round's surplus of tokens per second over its expectation moves later expectations.
TRUST_STEP = 0.1
FORGIVENESS = 0.002


@dataclass(frozen=True, slots=True)
class Choice:
    """Longest draft per sequence, by drafter; all 0 is plain decoding."""

    lookup: list[int]
    own: list[int]

    @classmethod
    def plain(cls, count: int) -> Choice:
        """No drafts."""
        return cls([0] * count, [0] * count)


@dataclass(frozen=True, slots=True)
class Bid:
    """A choice, what it is expected to bring in tokens per second, and what is made of that."""

    name: str
    choice: Choice
    expected: float
    rate: float


@dataclass(slots=True)
class Controller:
    """Chooses for one engine.

    `target` and `own` are the seconds of a target pass and of one self-draft pass, the latter by
    the share of KV heads that it limits; `own` is empty where there is no self-drafting.
    `staggered` is what a full batch must promise beside `MARGIN`. `trust`
    is how much of the expected speed drafts have brought of late, by drafter and size of the
    batch, `rounds` how often each kind was chosen, `limited` the acceptance of drafts by share.
    """

    target: PassCost
    own: dict[float, PassCost]
    staggered: float = STAGGERED
    lookup: dict[tuple[bool, int], Acceptance] = field(
        default_factory=lambda: {kind: Acceptance() for kind in LOOKUP_PRIOR}
    )
    limited: dict[float, Acceptance] = field(default_factory=dict)
    rounds: dict[str, int] = field(default_factory=dict)
    trust: dict[tuple[str, int], float] = field(default_factory=dict)
    standing: Standing = field(default_factory=Standing)
    share: float | None = None
    released_bytes: int = 0
    last: Bid | None = None

    def choose(
        self, sequences: Seq[Sequence], proposals: Seq[Proposal | None], context: float
    ) -> Choice:
        """The choice for the next round."""
        count = len(sequences)
        plain = self.target.estimate(count, context)
        margin = self._margin(count)
        best = Bid("plain", Choice.plain(count), count / plain, margin * count / plain)
        least = best.rate
        own = max(self._own_bids(sequences, context), key=lambda b: b.rate, default=None)
        if own is not None:
            levels = (margin, margin + 1 - MARGIN)
            if self.standing.choose(own.rate, best.expected, *levels):
                best = own
        for bid in self._lookup_bids(sequences, proposals, context, plain):
            # A self-draft that is only tried out is no measure for lookup: plain decoding is.
            if bid.rate > max(best.rate, least):
                best = bid
        self.rounds[best.name] = self.rounds.get(best.name, 0) + 1
        self.last = best
        return best.choice

    def note(self, committed: int, seconds: float) -> None:
        """Compare the round's tokens per second with what was expected of it."""
        bid = self.last
        if bid is None:
            return
        size = self._size(len(bid.choice.own))
        if bid.name == "plain":
            # Forgiveness: what was given up is tried again, some hundred rounds later.
            for (name, at), trust in self.trust.items():
                if at == size:
                    self.trust[name, at] = trust + FORGIVENESS * (1 - trust)
            return
        ratio = min(committed / seconds / bid.expected, 2.0)
        before = self.trust.get((bid.name, size), 1.0)
        self.trust[bid.name, size] = before + TRUST_STEP * (ratio - before)

    def _trusted(self, name: str, choice: Choice, expected: float) -> Bid:
        size = self._size(len(choice.own))
        return Bid(name, choice, expected, self.trust.get((name, size), 1.0) * expected)

    def _size(self, count: int) -> int:
        """The timed batch that this one is most like."""
        return min(self.target.sizes, key=lambda size: abs(size - count))

    def _lookup_bids(
        self,
        sequences: Seq[Sequence],
        proposals: Seq[Proposal | None],
        context: float,
        plain: float,
    ) -> Iterator[Bid]:
        count = len(sequences)
        chances = [
            self._lookup_chance(s, p) if p is not None else NONE
            for s, p in zip(sequences, proposals, strict=True)
        ]
        if all(p is None for p in proposals):
            return
        for most in LOOKUP_LIMITS:
            price = self.target.estimate(count, context, 1 + most) - plain
            worth = price / (count * most) * count / plain  # tokens that one draft token must bring
            lengths = [
                chance.length(min(most, s.lookup_limit), worth)
                for s, chance in zip(sequences, chances, strict=True)
            ]
            tokens = sum(c.tokens(n) for c, n in zip(chances, lengths, strict=True))
            expected = tokens / self._seconds(count, context, lengths)
            yield self._trusted("lookup", Choice(lengths, [0] * count), expected)

    def _own_bids(self, sequences: Seq[Sequence], context: float) -> Iterator[Bid]:
        if not self.own:
            return
        count = len(sequences)
        shares = [_share(s, self.own) for s in sequences]
        chances = [
            s.own_acceptance.chance(self._own_chance(share))
            for s, share in zip(sequences, shares, strict=True)
        ]
        per_pass = sum(self.own[share].estimate(count, context) for share in shares) / count
        for most in range(1, max(s.draft_limit for s in sequences) + 1):
            lengths = [min(most, s.draft_limit) for s in sequences]
            seconds = most * per_pass + self._seconds(count, context, lengths)
            tokens = sum(c.tokens(n) for c, n in zip(chances, lengths, strict=True))
            yield self._trusted("self", Choice([0] * count, lengths), tokens / seconds)

    def own_may_pay(self, most: int) -> bool:
        """Whether self-drafts of up to `most` tokens can win here, were nearly all accepted."""
        return any(
            self._own_rate(share, count, context, k, OPTIMISTIC) * plain > self._margin(count)
            for count in self.target.sizes
            for context in (*self.target.contexts, self.target.longest)
            for plain in (self.target.estimate(count, context) / count,)
            for share in self.own
            for k in range(1, most + 1)
        )

    def observe_own(
        self, sequences: Seq[Sequence], draft: Draft, context: float, seconds: float
    ) -> None:
        """Take the time of a round's self-drafts into account, where all limit the same share."""
        lengths = [len(tokens) for tokens in draft.tokens]
        shares = {_share(s, self.own) for s, n in zip(sequences, lengths, strict=True) if n}
        if len(shares) == 1:
            # Each pass drafts one token of everybody who has not ended yet.
            count = round(sum(lengths) / max(lengths))
            self.own[shares.pop()].observe(count, context, seconds / max(lengths))

    def window_share(self, count: int, context: float, most: int) -> float:
        """The share of KV heads whose limits make drafts of such a batch most worth their time.

        The drafts have up to `most` tokens. A share stays until another is clearly better.
        """
        rates = {
            share: max(
                self._own_rate(share, count, context, k, self._own_chance(share))
                for k in range(1, most + 1)
            )
            for share in self.own
        }
        self.share = keep_share(self.share, rates)
        return self.share

    def _own_rate(self, share: float, count: int, context: float, k: int, chance: Chance) -> float:
        """Tokens per second of rounds in which all of a batch draft k tokens."""
        seconds = k * self.own[share].estimate(count, context)
        seconds += self.target.estimate(count, context, 1 + k)
        return count * chance.tokens(k) / seconds

    def _own_chance(self, share: float) -> Chance:
        """What self-drafts with such limits may expect: the more is limited, the less."""
        worst = SELF_PRIOR.first - LIMITED * share
        seen = self.limited.get(share)
        prior = Chance(worst, worst)
        return prior if seen is None else seen.chance(prior)

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
            seen = judged(proposal.copy(before, len(committed)), committed)
            self.lookup[proposal.kind].see(*seen)
            s.lookup_acceptance.see(*seen)
        if own[1]:
            s.own_acceptance.see(*own)
            if self.own:
                self.limited.setdefault(_share(s, self.own), Acceptance()).see(*own)

    def explain(self) -> Explanation:
        """What the choices rest on now, and which there were."""
        costs = {"target": self.target}
        for share, cost in self.own.items():
            costs["self" if len(self.own) == 1 else f"self, {share:.0%} limited"] = cost
        return Explanation(
            dict(self.rounds),
            {name: cost.table() for name, cost in costs.items()},
            {
                f"{matched} tokens{' of another row' if stored else ''}": (
                    self.lookup[stored, matched].chance(prior)
                )
                for (stored, matched), prior in LOOKUP_PRIOR.items()
            },
            {f"{name} at {size}": trust for (name, size), trust in sorted(self.trust.items())},
            self.released_bytes,
        )

    def _lookup_chance(self, s: Sequence, proposal: Proposal) -> Chance:
        shared = self.lookup[proposal.kind].chance(LOOKUP_PRIOR[proposal.kind])
        return s.lookup_acceptance.chance(shared)

    def _seconds(self, count: int, context: float, lengths: list[int]) -> float:
        # Matrix products follow all tokens of the pass, attention the longer drafts a little.
        mean, longest = 1 + sum(lengths) / count, 1 + max(lengths)
        both = [self.target.estimate(count, context, n) for n in (mean, longest)]
        return 0.75 * both[0] + 0.25 * both[1]

    def _margin(self, count: int) -> float:
        return MARGIN + self.staggered * min(1.0, (count - 1) / (FULL - 1))


def _share(s: Sequence, known: dict[float, PassCost]) -> float:
    share = s.plan.window_share if s.plan is not None else 0.0
    return share if share in known else next(iter(known))
