"""Lookup drafts: what followed the last tokens the last time that they stood somewhere.

First in this sequence, prompt and output (Saxena 2023; vLLM's and transformers' "ngram" / "prompt
lookup" drafts), else in what earlier ones said. Costs no pass through a model. A draft of this kind
is certain of each token: under verification by rejection its law is a point mass.
"""

from __future__ import annotations

from dataclasses import dataclass

from admg.drafters.draft import Draft
from admg.drafters.ngram_index import copy_from
from admg.drafters.ngram_store import Found, NgramStore
from admg.sequence import Sequence

# Behind a draft, which is likely but not certain, two equal tokens are too little to go by.
_TAIL_MATCH = 3


@dataclass(frozen=True, slots=True)
class Proposal:
    """A place to copy from, and the length of the suffix that led there.

    The place is in the sequence itself, unless `stored`, which is in the store then.
    """

    at: int
    matched: int
    stored: Found | None = None

    @property
    def kind(self) -> tuple[bool, int]:
        """What its acceptance is learned by."""
        return self.stored is not None, self.matched

    def copy(self, tokens: list[int], count: int) -> list[int]:
        """Up to `count` tokens; `tokens` are the sequence's when the proposal was made."""
        if self.stored is not None:
            return self.stored.copy(count)
        return copy_from(tokens, self.at, count)


class NgramDrafter:
    """Looks every sequence up in itself and in what others have said.

    Args:
        keep_laws: whether verification wants the law of each draft token.
        store_tokens: how much of finished sequences to keep; 0 nothing.
    """

    source = "ngram"

    def __init__(self, keep_laws: bool, store_tokens: int) -> None:
        self._keep_laws = keep_laws
        self._store = NgramStore(store_tokens) if store_tokens else None

    def propose(self, s: Sequence) -> Proposal | None:
        """Where the sequence may be copied from next: the longest match, its own if equal."""
        s.ngrams.extend(s.tokens)
        found = s.ngrams.match(s.tokens)
        other = None if self._store is None else self._store.match(s.tokens)
        if other is not None and (found is None or found[1] < other.matched):
            return Proposal(other.at, other.matched, other)
        return None if found is None else Proposal(*found)

    def keep(self, s: Sequence) -> None:
        """Take a finished sequence into the store."""
        if self._store is not None:
            self._store.add(s.request.prompt_token_ids, s.completion)

    def continue_drafts(self, sequences: list[Sequence], most: int, draft: Draft) -> None:
        """Append up to `most` tokens to each draft that there is, as if it were committed."""
        for i, s in enumerate(sequences):
            drafted = draft.tokens[i]
            room = min(most, s.lookup_limit - len(drafted))
            if not drafted or room < 1 or drafted[-1] in s.stops:
                continue
            tokens = [*s.tokens, *drafted]
            s.ngrams.extend(s.tokens)
            found = s.ngrams.match(tokens)
            if found is not None and found[1] >= _TAIL_MATCH:
                self._add(s, i, copy_from(tokens, found[0], room), draft)

    def draft(
        self,
        sequences: list[Sequence],
        proposals: list[Proposal | None],
        limits: list[int],
        draft: Draft,
    ) -> None:
        """Append what the proposals say, up to each limit, no further than a stop token."""
        for i, (s, proposal) in enumerate(zip(sequences, proposals, strict=True)):
            if proposal is None or limits[i] < 1:
                continue
            self._add(s, i, proposal.copy(s.tokens, limits[i]), draft)

    def _add(self, s: Sequence, i: int, tokens: list[int], draft: Draft) -> None:
        stop = next((j for j, t in enumerate(tokens) if t in s.stops), len(tokens))
        tokens = tokens[: stop + 1]
        draft.add(i, tokens, self.source)
        if self._keep_laws:
            draft.laws[i].extend([None] * len(tokens))
