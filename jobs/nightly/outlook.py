"""What a tick would do for a date, found out without writing anything."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date

import numpy as np

from jobs.nightly.night import Night, prompt_of
from jobs.nightly.stages import Cutter, long_documents
from jobs.nightly_summaries import (
    configuration,
    nothing_new,
    reading,
    shards_of,
    stages_of,
    state_of,
)
from jobs.plan import Plan, make_plan
from pipeline.ledger import read_ledger
from pipeline.source import open_source
from pipeline.storage import Store


@dataclass(frozen=True, slots=True)
class Outlook:
    """A date before its tick. `left` counts ids that the output does not hold yet.

    `long` documents are too long for one prompt, and `parts` is what they are cut into at first.
    """

    date: date
    state: str
    shards: int = 0
    rows: int = 0
    left: int = 0
    long: int = 0
    parts: int = 0

    @property
    def prompts(self) -> int:
        """What there is to decode, parts of parts left aside; at most, where parts are known."""
        return self.left + self.parts if self.left else 0


def plan_of(night: Night, day: date, with_sample: bool) -> Plan:
    """The plan of a date as if nothing were done yet and long documents were cut off.

    What it takes for a prompt holds for the date's summaries, and nearly for those of parts.

    Raises:
        ValueError: what the tick would refuse.
    """
    prompt = prompt_of(night.file, night.style, night.file.summary.text_column)
    config = replace(
        night.base,
        input=reading(night, day).input,
        output=f"{stages_of(night, day)}/none",
        keep=(),
        prompt=replace(prompt, on_long="truncate-right"),
    )
    return make_plan(config, with_sample=with_sample, engine_factory=night.factory)


def look_at(night: Night, day: date) -> Outlook:
    """Read a date's documents and what its output holds.

    Raises:
        ValueError: what the tick would refuse.
    """
    shards = shards_of(night, day)
    if not shards:
        return Outlook(day, "empty")
    if nothing_new(night, day, state_of(night, day, shards)):
        return Outlook(day, "nothing new", len(shards))
    config = reading(night, day)
    source = open_source(config)
    scan = source.scan(config)
    ledger = read_ledger(Store(configuration(night, day).output), config.id_column)
    done = ledger.done(config.retry_failed).ids()
    left = sum(int(np.count_nonzero(~done.contains(part.ids))) for part in scan.chunks)
    cutter = Cutter(night.factory.tokenizer(), night.budget)
    chunks = [part.chunk for part in scan.chunks]
    columns = (config.id_column, night.file.summary.text_column)
    long = long_documents(chunks, source.schema, *columns, cutter)
    parts = sum(map(len, long.values()))
    return Outlook(day, "to do", len(shards), scan.rows, left, len(long), parts)


def outlook_line(outlook: Outlook) -> str:
    """One line for people."""
    if outlook.state != "to do":
        return f"date={outlook.date}: {outlook.state}"
    line = (
        f"date={outlook.date}: {outlook.shards} shards, {outlook.rows} documents, "
        f"{outlook.left} without a summary"
    )
    if outlook.long:
        line += f"; {outlook.long} are too long for one prompt: {outlook.parts} parts"
    return line
