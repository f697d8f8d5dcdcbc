"""What happened when: from the times at which blocks were committed.

Time that passed between two runs is left out, so the axis is time at work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from jobs.report.gathered import FileSums
from pipeline.commit_times import commit_times, content, is_part, noted_commits
from pipeline.storage import Store

_FEWEST_COMMITS, _MOST_BINS = 4, 48
# A pause is a gap of that many usual ones, and of at least this long.
_PAUSE_GAPS, _PAUSE_SECONDS = 20.0, 900.0
# Files of a copied output have all been written at once.
_SHORTEST_SECONDS = 2.0


@dataclass(frozen=True)
class Commit:
    """One block: seconds since 1970, what it held."""

    seconds: float
    rows: int
    completion_tokens: int
    drafter_tokens: Mapping[str, int]


@dataclass(frozen=True)
class Timeline:
    """Bins of time at work. `edges` are seconds from the beginning, one more than bins.

    `pauses` are where time between runs was left out. `share` of the rows have a time.
    """

    edges: Sequence[float]
    tokens_per_second: Sequence[float]
    drafter_shares: Mapping[str, Sequence[float]]
    commits: int
    share: float
    pauses: Sequence[float] = field(default_factory=tuple)

    @property
    def seconds(self) -> float:
        """Time at work in all."""
        return self.edges[-1]


def read_commits(store: Store, files: Mapping[str, FileSums]) -> list[Commit]:
    """All commits that are known of, in the order of their times."""
    noted = noted_commits(store).to_pylist()
    known = {line["content"] for line in noted}
    commits = [
        Commit(
            line["seconds"],
            line["rows"],
            line["completion_tokens"],
            {pair["source"]: pair["tokens"] for pair in line["drafter_tokens"]},
        )
        for line in noted
    ]
    parts = [name for name in files if is_part(name) and content(name) not in known]
    for name, seconds in (commit_times(store, parts) if parts else {}).items():
        sums = files[name]
        commits.append(Commit(seconds, sums.rows, sums.completion_tokens, sums.drafter_tokens))
    return sorted((c for c in commits if c.seconds > 0), key=lambda commit: commit.seconds)


def timeline(commits: Sequence[Commit], rows: int, started: str | None) -> Timeline | None:
    """The course of an output of so many rows; None where too little is known for one.

    `started` is when the last run began: its first block took as long as it is before that.
    """
    if len(commits) < _FEWEST_COMMITS:
        return None
    times = np.array([c.seconds for c in commits])
    gaps = np.diff(times)
    pause = max(_PAUSE_SECONDS, _PAUSE_GAPS * float(np.median(gaps)))
    first_gap = _gap_before(times, started, pause)
    # Behind a pause nobody knows when work began again: a usual gap before its first commit.
    usual = float(np.median(gaps[gaps <= pause])) if (gaps <= pause).any() else 0.0
    worked = np.concatenate([[first_gap], np.where(gaps > pause, usual, gaps)])
    at = np.cumsum(worked)
    if at[-1] < _SHORTEST_SECONDS:
        return None
    bins = int(np.clip(len(commits) // 3, 3, _MOST_BINS))
    edges = np.linspace(0.0, at[-1], bins + 1)
    tokens = _made(at, [c.completion_tokens for c in commits], edges)
    names = list(dict.fromkeys(name for c in commits for name in c.drafter_tokens))
    made = {n: _made(at, [c.drafter_tokens.get(n, 0) for c in commits], edges) for n in names}
    total = sum(made.values(), np.zeros(bins))
    shares = {n: (m / np.where(total > 0, total, np.nan)).tolist() for n, m in made.items()}
    return Timeline(
        edges=edges.tolist(),
        tokens_per_second=(tokens / np.diff(edges)).tolist(),
        drafter_shares=shares,
        commits=len(commits),
        share=min(1.0, sum(c.rows for c in commits) / max(rows, 1)),
        pauses=at[1:][gaps > pause].tolist(),
    )


def _gap_before(times: np.ndarray, started: str | None, pause: float) -> float:
    if started is not None:
        before = times[0] - datetime.fromisoformat(started).timestamp()
        if 0 <= before <= pause:
            return float(before)
    return float(np.median(np.diff(times)))


def _made(at: np.ndarray, amounts: Sequence[float], edges: np.ndarray) -> np.ndarray:
    """What was made within each bin: a block's tokens came evenly since the block before it."""
    done = np.concatenate([[0.0], np.cumsum(amounts)])
    return np.diff(np.interp(edges, np.concatenate([[0.0], at]), done))
