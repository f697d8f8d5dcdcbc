"""The audit: a sample of rows is decoded again, plainly, to compare tokens and times.

What is sampled is a group of rows of one block. The group has the engine for itself, twice: as
every row is decoded, and right after that with drafting forbidden. So both times are those of the
same rows in an equally full batch, moments apart, and no block waits for another one's rows. The
noise of both is the same: its key is the row's.

A group of several batches, where the block has as many, keeps the batch full but for its end.
There rows that end late, for their drafts fail, have it half empty, which makes their rounds
cheaper than they are in a run; plain decoding, in which rows go at one pace, has no such end.

Where the tokens differ, the model scores those of the first time, untimed: passes of another shape
round otherwise, so in bf16 decoding may part at a near-tie, which is no mistake. Drafts that are
verified by rejection keep the law and not the tokens: at a temperature those are not scored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from admg.request import Completion, Request, Score
from pipeline.config import RunConfig

_BATCHES = 4
_BYTES = 6  # a float holds as many exactly, so that no chance rounds to 1


@dataclass(frozen=True, slots=True)
class Audit:
    """What is audited: about a share `rate` of all groups of up to `rows` rows.

    Whether a group is, depends on the key of its first row alone: the same blocks, cut into groups
    of the same size, have the same rows audited, whichever actor decodes them and in what order.
    """

    rate: float = 0.0
    rows: int = 1
    by_rejection: bool = False

    @classmethod
    def of(cls, config: RunConfig) -> Audit:
        """That of a run."""
        engine = config.engine
        return cls(config.audit, _BATCHES * engine.max_num_seqs, engine.draft.by_rejection)

    def groups(self, keys: Sequence[str], fit: Collection[int]) -> list[list[int]]:
        """The places of the rows to audit in a block of rows with these keys, group by group.

        Only rows at the places `fit` are taken; the others do not move the groups' bounds.
        """
        if not self.rate:
            return []
        starts = [i for i in range(0, len(keys), self.rows) if _chance(keys[i]) < self.rate]
        bounds = [range(i, min(i + self.rows, len(keys))) for i in starts]
        groups = [[i for i in places if i in fit] for places in bounds]
        return [group for group in groups if group]

    def to_score(self, request: Request, first: Completion, again: Completion) -> Request | None:
        """What tells whether tokens that differ do so at near-ties; None where nothing is asked."""
        errors = "error" in (first.finish_reason, again.finish_reason)
        own_noise = self.by_rejection and not request.sampling.greedy
        if errors or own_noise or first.token_ids == again.token_ids:
            return None
        return replace(request, draft=False, forced=tuple(first.token_ids))


def _chance(key: str) -> float:
    """A number of [0, 1) that the key alone decides."""
    digest = hashlib.blake2b(key.encode(), digest_size=_BYTES, person=b"admg audit").digest()
    return int.from_bytes(digest) / 2.0 ** (8 * _BYTES)


def compared(first: Completion, again: Completion, score: Score | None = None) -> Completion:
    """The first completion, with what decoding it `again` plainly and scoring it has shown.

    The true speedup compares the seconds of a token: where the tokens differ, as they may in bf16
    at a near-tie, there need not be as many. An error row is not audited.
    """
    if first.finish_reason == "error":
        return first
    times = [_seconds_per_token(c) for c in (first, again)]
    stats = replace(
        first.stats,
        audited=True,
        audit_identical=first.token_ids == again.token_ids,
        audit_near_tie=None if score is None else score.near_tie,
        audit_speedup=times[1] / times[0] if times[0] and times[1] else None,
    )
    return replace(first, stats=stats)


def _seconds_per_token(completion: Completion) -> float | None:
    """Of decoding alone: the first token is the prefill's. None where no other one was made."""
    tokens = completion.stats.completion_tokens - 1
    return completion.stats.decode_seconds / tokens if tokens > 0 else None
