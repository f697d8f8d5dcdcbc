"""The nightly job file: TOML checked by pydantic, as job files are.

`input` and `output` are folders of `date=YYYY-MM-DD` folders; the tables [sampling], [draft] and
[engine] are those of any job file, and [summary] stands in the place of [prompt].
"""

from __future__ import annotations

from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel

from jobs.job_file import (
    COMMON_TABLES,
    AnyJob,
    JobFile,
    Table,
    place_beside,
    plan_beside,
    read_toml,
)
from jobs.nightly.prompts import DOCUMENT

ADDED = ("document_parts", "document_parts_failed", "document_truncated")
"""Columns that a summary has beside those of any output."""


class ExampleTable(Table):
    text: str
    summary: str


class SummaryTable(Table):
    text_column: str = "text"
    reference_column: str | None = None
    style: Literal["auto", "chat", "few-shot"] = "auto"
    instruction: str | None = None
    examples: list[ExampleTable] | None = None
    long_documents: Literal["map-reduce", "truncate"] = "map-reduce"
    part_tokens: int | None = None


class NightlyTable(Table):
    time_zone: str = "UTC"
    days_back: int = 1
    catch_up_days: int = 0
    keep_days: int | None = None


class QualityTable(Table):
    sample_rows: int = 5000
    alarm_share: float = 0.01


class NightlyFile(AnyJob):
    """The keys at the top of a nightly job file, and its tables."""

    input: str | None = None
    nightly: NightlyTable = NightlyTable()
    summary: SummaryTable = SummaryTable()
    quality: QualityTable = QualityTable()

    def job(self) -> JobFile:
        """The ordinary job file in it; its input and output are the folders of all dates."""
        values: dict[str, Any] = {name: getattr(self, name) for name in AnyJob.model_fields}
        values["input"] = None if self.input is None else [self.input]
        return JobFile.model_construct(**values)


TABLES: dict[str, type[BaseModel]] = {
    "nightly": NightlyTable,
    "summary": SummaryTable,
    "summary.examples": ExampleTable,
    "quality": QualityTable,
    **COMMON_TABLES,
}


def read_nightly_file(path: str) -> NightlyFile:
    """Read and check a nightly job file; relative paths are relative to where it lies.

    Raises:
        ValueError: what is wrong and where, every mistake on its own line.
    """
    file = read_toml(path, NightlyFile, TABLES)
    wrong = list(_impossible(file))
    if wrong:
        raise ValueError("\n".join(f"{path}: {sentence}" for sentence in wrong))
    update = {
        name: place_beside(path, value)
        for name in ("input", "output", "model")
        if (value := getattr(file, name)) is not None and not (name == "model" and value == "demo")
    }
    return file.model_copy(update=update | {"draft": plan_beside(path, file.draft)})


def time_zone(name: str) -> ZoneInfo:
    """A time zone by its name.

    Raises:
        ValueError: there is none of this name.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        right = "it must be the name of a time zone, as Europe/Berlin or UTC"
        raise ValueError(f"nightly.time_zone is {name!r}: {right}") from error


def _impossible(file: NightlyFile) -> list[str]:
    """What no single key's type says, a sentence each."""
    night, summary, quality = file.nightly, file.summary, file.quality
    found: list[str] = []
    try:
        time_zone(night.time_zone)
    except ValueError as error:
        found.append(str(error))

    def refuse(wrong: bool, name: str, value: object, right: str) -> None:
        if wrong:
            found.append(f"{name} is {value!r}: it must be {right}")

    refuse(not 0 <= night.days_back <= 366, "nightly.days_back", night.days_back, "0 to 366")
    days = night.catch_up_days
    refuse(not 0 <= days <= 366, "nightly.catch_up_days", days, "0 to 366")
    if night.keep_days is not None:
        right = f"more than nightly.catch_up_days ({days}), or nights would be removed and redone"
        refuse(night.keep_days <= days, "nightly.keep_days", night.keep_days, right)
    refuse(not summary.text_column, "summary.text_column", "", "the name of a column")
    if summary.part_tokens is not None:
        refuse(summary.part_tokens < 1, "summary.part_tokens", summary.part_tokens, "at least 1")
    refuse(not quality.sample_rows > 0, "quality.sample_rows", quality.sample_rows, "at least 1")
    share = quality.alarm_share
    refuse(not 0 <= share <= 1, "quality.alarm_share", share, "a share, 0 to 1")
    right = f"another name than {', '.join(ADDED)}, which the program's own columns have"
    for key, names in (("keep", file.keep or []), ("id_column", [file.id_column])):
        for name in names:
            refuse(name in (*ADDED, DOCUMENT), key, name, right)
    examples = summary.examples is not None
    lonely = examples and summary.style == "chat"
    refuse(lonely, "summary.examples", "...", "left out where summary.style is chat")
    return found
