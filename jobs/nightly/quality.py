"""What summaries are like, in numbers that need no judge: lengths, copying, loops, ROUGE."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from jobs.nightly.file import NightlyFile
from pipeline.config import RunConfig
from pipeline.ledger import read_columns
from pipeline.prepare import values_of
from pipeline.source import Scan
from pipeline.storage import STATE, Store

QUALITY = f"{STATE}/quality.json"
NGRAM = 4
_CUT_SHARE = 0.2
_EXAMPLES = 5
# A word; each character on its own where a script has no spaces.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
# What counts as a loop: so many words at the end that are a phrase said at least so many times.
_LOOP_WORDS, _LOOP_TIMES, _LONGEST_PHRASE = 12, 3, 40


@dataclass(frozen=True, slots=True)
class Quality:
    """Numbers of the summaries of a date. Means are over the rows looked at that have a summary.

    `compression` is words of the document over words of its summary, `copy_rate` the share of the
    summary's runs of four words that stand in the document. `rouge` has the mean F-measures
    against the reference column, over `rows_with_reference`. `looked_at` of `rows` were looked at.
    """

    rows: int
    looked_at: int
    rows_error: int
    empty: int
    loops: int
    cut: int
    words: float | None = None
    document_words: float | None = None
    compression: float | None = None
    copy_rate: float | None = None
    rows_with_reference: int = 0
    rouge: dict[str, float] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    alarms: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The values by name, fit for JSON."""
        return asdict(self)


def words_of(text: str) -> list[str]:
    """The words in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def ngrams(words: Sequence[str], size: int = NGRAM) -> list[tuple[str, ...]]:
    """All runs of so many words; of a shorter text the one that there is."""
    if len(words) < size:
        return [tuple(words)] if words else []
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]


def copy_rate(summary: Sequence[str], document: Sequence[str]) -> float | None:
    """The share of the summary's n-grams that the document has; None for an empty summary."""
    if not summary:
        return None
    size = min(NGRAM, len(summary))
    own = ngrams(summary, size)
    there = set(ngrams(document, size))
    return sum(gram in there for gram in own) / len(own)


def ends_in_a_loop(words: Sequence[str]) -> bool:
    """Whether the text ends with one phrase over and over."""
    for size in range(1, min(_LONGEST_PHRASE, len(words) // _LOOP_TIMES) + 1):
        times = max(_LOOP_TIMES, -(-_LOOP_WORDS // size))
        tail = words[-size * times :]
        if len(tail) == size * times and list(tail) == list(words[-size:]) * times:
            return True
    return False


class _Words:
    """The tokenizer that the ROUGE library is given: its own knows the letters a to z alone."""

    def tokenize(self, text: str) -> list[str]:
        """The words."""
        return words_of(text)


def measure_quality(file: NightlyFile, config: RunConfig, schema: pa.Schema, scan: Scan) -> Quality:
    """Look at the summaries of an output beside their documents.

    Of many rows a sample is looked at, the same one whenever it is taken. Counts of errors, empty
    and cut summaries are those of all rows.
    """
    summaries, counts = _summaries(config, file.quality.sample_rows)
    meter = _Meter(file.summary.reference_column is not None)
    text, reference = file.summary.text_column, file.summary.reference_column
    names = [config.id_column, text, *([reference] if reference else [])]
    wanted = pa.schema([schema.field(name) for name in dict.fromkeys(names)])
    for part in scan.chunks:
        for table in part.chunk.read(wanted):
            columns = [values_of(table[name]) for name in names]
            for row, document, *told in zip(*columns, strict=True):
                if row in summaries and isinstance(document, str):
                    meter.add(row, summaries[row], document, told[0] if told else None)
    return meter.quality(counts, file.quality.alarm_share)


def _summaries(config: RunConfig, most: int) -> tuple[dict[int | str, str], Counter[str]]:
    """Summaries of up to so many rows by id, and counts over all rows."""
    store = Store(config.output)
    counts: Counter[str] = Counter()
    found: list[tuple[bytes, int | str, str]] = []
    columns = [config.id_column, "status", "finish_reason", "completion"]
    for name in store.names(".parquet"):
        for row in _rows(read_columns(store, name, columns)):
            counts["rows"] += 1
            if row["status"] == "error":
                counts["error"] += 1
                continue
            counts["cut"] += row["finish_reason"] == "length"
            counts["empty"] += not row["completion"].strip()
            own = row[config.id_column]
            found.append((_place(own), own, row["completion"]))
        if len(found) > 2 * most:
            found = sorted(found)[:most]
    return {own: text for _, own, text in sorted(found)[:most]}, counts


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=1024):
        yield from batch.to_pylist()


def _place(row: int | str) -> bytes:
    return hashlib.blake2b(str(row).encode(), digest_size=8).digest()


class _Meter:
    def __init__(self, rouge: bool) -> None:
        self._sums: Counter[str] = Counter()
        self._rouge: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}
        self._scorer = _scorer() if rouge else None

    def add(self, row: int | str, summary: str, document: str, reference: object) -> None:
        own, source = words_of(summary), words_of(document)
        self._sums["looked"] += 1
        if not own:
            self._note("empty", row)
            return
        if ends_in_a_loop(own):
            self._sums["loops"] += 1
            self._note("loops", row)
        self._sums["measured"] += 1
        self._sums["words"] += len(own)
        self._sums["document_words"] += len(source)
        self._sums["compression"] += len(source) / len(own)  # type: ignore[assignment]
        self._sums["copied"] += copy_rate(own, source) or 0  # type: ignore[assignment]
        if self._scorer is not None and isinstance(reference, str) and reference.strip():
            self._sums["references"] += 1
            for name, score in self._scorer.score(reference, summary).items():
                self._rouge[name] += score.fmeasure

    def _note(self, kind: str, row: int | str) -> None:
        named = self._examples.setdefault(kind, [])
        if len(named) < _EXAMPLES:
            named.append(str(row))

    def quality(self, counts: Counter[str], alarm_share: float) -> Quality:
        sums = self._sums
        measured, references = sums["measured"], sums["references"]

        def mean(name: str) -> float | None:
            return sums[name] / measured if measured else None

        return Quality(
            rows=counts["rows"],
            looked_at=sums["looked"],
            rows_error=counts["error"],
            empty=counts["empty"],
            loops=sums["loops"],
            cut=counts["cut"],
            words=mean("words"),
            document_words=mean("document_words"),
            compression=mean("compression"),
            copy_rate=mean("copied"),
            rows_with_reference=references,
            rouge={name: value / references for name, value in self._rouge.items()},
            examples=self._examples,
            alarms=tuple(_alarms(counts, sums, alarm_share)),
        )


def _alarms(counts: Counter[str], sums: Counter[str], share: float) -> Iterator[str]:
    good = counts["rows"] - counts["error"]
    for name, found, of, level, words in (
        ("EMPTY", counts["empty"], good, share, "of the summaries are empty"),
        ("LOOPS", sums["loops"], sums["looked"], share, "end in a phrase said over and over"),
        ("CUT", counts["cut"], good, _CUT_SHARE, "were cut off at max_tokens"),
    ):
        if of and found / of > level:
            yield f"{name}: {found} of {of} ({100 * found / of:.1f} %) {words}"


def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=_Words())


def quality_lines(quality: Quality) -> Iterator[str]:
    """The numbers for people, a fact a line."""
    sampled = quality.looked_at < quality.rows - quality.rows_error
    of = f" (in a sample of {quality.looked_at} rows)" if sampled else ""
    if quality.words is not None:
        yield (
            f"length        {quality.words:.1f} words, documents {quality.document_words:.1f}: "
            f"compression {quality.compression:.1f}{of}"
        )
        yield f"copied        {100 * (quality.copy_rate or 0):.1f} % of the runs of {NGRAM} words"
    if quality.rouge:
        scores = ", ".join(f"{name} {value:.3f}" for name, value in quality.rouge.items())
        yield f"rouge         {scores} (F, {quality.rows_with_reference} references)"
    yield (
        f"doubtful      {quality.empty} empty, {quality.loops} in a loop, "
        f"{quality.cut} cut off, {quality.rows_error} error rows"
    )
    for name, rows in quality.examples.items():
        yield f"{name + ' in':<14}{', '.join(rows)}"
