"""Lookup drafts: what followed the last tokens the last time that they stood in this sequence.

Prompt lookup over the prompt and the sequence's own output (Saxena 2023; vLLM's and transformers'
"ngram" / "prompt lookup" drafts). Costs no pass through a model. A draft of this kind is certain
of each token: under verification by rejection its law is a point mass.
"""

from __future__ import annotations

from dataclasses import dataclass

from admg.drafters.draft import Draft
from admg.drafters.ngram_index import copy_from
from admg.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Proposal:
    """A place to copy from, and the length of the suffix that led there."""

    at: int
    matched: int


class NgramDrafter:
    """Looks every sequence up in itself."""

    source = "ngram"

    def __init__(self, keep_laws: bool) -> None:
        self._keep_laws = keep_laws

    def propose(self, s: Sequence) -> Proposal | None:
        """Where the sequence may be copied from next."""
        s.ngrams.extend(s.tokens)
        found = s.ngrams.match(s.tokens)
        return None if found is None else Proposal(*found)

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
            tokens = copy_from(s.tokens, proposal.at, limits[i])
            stop = next((j for j, t in enumerate(tokens) if t in s.stops), len(tokens))
            tokens = tokens[: stop + 1]
            draft.add(i, tokens, self.source)
            if self._keep_laws:
                draft.laws[i].extend([None] * len(tokens))
