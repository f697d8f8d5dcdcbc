"""What a controller goes by, for people to read."""

from __future__ import annotations

from dataclasses import dataclass

from admg.acceptance import Chance


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a controller goes by.

    `rounds` by choice; `costs` by kind of pass, (sequences, context, tokens, seconds) for each
    point that was timed; `lookup` the acceptance by what was matched; `trust` how much
    of the speed expected of drafts has come of late, by drafter and sequences. `released_bytes`
    of smaller weights were given back, for self-drafts cannot pay here.
    """

    rounds: dict[str, int]
    costs: dict[str, list[tuple[int, int, int, float]]]
    lookup: dict[str, Chance]
    trust: dict[str, float]
    released_bytes: int = 0
