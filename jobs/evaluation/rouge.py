"""ROUGE of completions against references, one value a row, so that rows can be compared in pairs.

Google's rouge-score: words of the letters a to z and digits in lower case, Porter's stemmer for
words longer than three letters, as Draft & Verify's notebooks have it. ROUGE-L is of the whole
text, not of its sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rouge:
    """F-measures, 0 to 1: of pairs of words, and of the longest common subsequence."""

    rouge2: float
    rouge_l: float


def rouge_scores(completions: Sequence[str], references: Sequence[str]) -> list[Rouge]:
    """The scores of each completion against its reference; 0 for an empty one.

    Raises:
        ValueError: not as many of the one as of the other.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge2", "rougeL"], use_stemmer=True)
    rows = [scorer.score(told, own) for own, told in zip(completions, references, strict=True)]
    return [Rouge(row["rouge2"].fmeasure, row["rougeL"].fmeasure) for row in rows]
