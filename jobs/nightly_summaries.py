"""Nightly summaries: from a date to a configuration, and a date's stages in their order.

The shards of `input/date=2026-11-20/` become the summaries in `output/date=2026-11-20/`. A
document that is too long is cut into parts; the parts are summarised by a run of their own, and
then the document by its parts' summaries, again in parts where these are still too long. Each of
these stages is an ordinary run, with an ordinary output: it goes on where it was ended, does
nothing twice and keeps every row's statistics. The stages before the last one lie in
`output/.stages/date=2026-11-20/`, which readers of the output pass over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from functools import partial
from typing import Any, Literal

import pyarrow as pa
from pyarrow import fs

from jobs.nightly import stages
from jobs.nightly.dates import STAGES, folder_of
from jobs.nightly.file import ADDED
from jobs.nightly.night import Night
from jobs.nightly.places import check_places, info
from jobs.nightly.quality import QUALITY, Quality, measure_quality
from pipeline.config import PromptConfig, RunConfig
from pipeline.lease import Lease, LeaseTimes, hold
from pipeline.ledger import read_columns
from pipeline.manifest import SUCCESS
from pipeline.redaction import redacted_values
from pipeline.retry import Patience
from pipeline.run import RunReport
from pipeline.shards import Shard, find_shards
from pipeline.source import Scan, Source, open_source
from pipeline.storage import STATE, Store

Decode = Callable[[RunConfig], RunReport]
"""Does a run: `pipeline.run.run`, with whatever shows its progress."""

DONE = f"{STATE}/nightly.json"
_LEVELS = 8


@dataclass(frozen=True, slots=True)
class DateReport:
    """What was done for a date. `stages` are the runs, the last of them the summaries'."""

    date: date
    state: Literal["empty", "nothing new", "done"]
    output: str
    stages: dict[str, RunReport] = field(default_factory=dict)
    bad_shards: tuple[str, ...] = ()
    quality: Quality | None = None

    @property
    def rows_error(self) -> int:
        """Error rows of all stages."""
        return sum(report.rows_error for report in self.stages.values())


def configuration(night: Night, day: date) -> RunConfig:
    """The run that makes a date's summaries, from the input that the stages before it leave."""
    output = f"{night.base.output.rstrip('/')}/{folder_of(day)}"
    prepared = f"{stages_of(night, day)}/{stages.INPUTS}/{stages.LAST}"
    keep = tuple(dict.fromkeys((*night.base.keep, *ADDED)))
    # A part that has come out now and had failed before makes another document.
    changed = "recompute" if night.base.retry_failed else night.base.on_changed
    return replace(night.base, input=(prepared,), output=output, keep=keep, on_changed=changed)


def stages_of(night: Night, day: date) -> str:
    """The folder of a date's stages."""
    return f"{night.base.output.rstrip('/')}/{STAGES}/{folder_of(day)}"


def reading(night: Night, day: date) -> RunConfig:
    """How the user's own shards of a date are read."""
    folder = f"{night.base.input[0].rstrip('/')}/{folder_of(day)}"
    summary = night.file.summary
    keep = [*night.base.keep]
    if summary.reference_column is not None and summary.reference_column not in keep:
        keep.append(summary.reference_column)
    prompt = PromptConfig(summary.text_column)
    return replace(night.base, input=(folder,), keep=tuple(keep), prompt=prompt)


def shards_of(night: Night, day: date) -> list[Shard]:
    """The user's shards of a date; none on an empty night.

    Raises:
        ValueError: the folder of all dates does not exist: that is a mistake, and no empty night.
        StorageError: the storage does not answer.
    """
    check_places(night)
    folder = reading(night, day).input[0]
    if info(night, folder).type != fs.FileType.Directory:
        return []
    try:
        return find_shards((folder,), Patience(night.base.storage_patience_seconds))
    except ValueError:  # a folder without Parquet
        return []


def state_of(night: Night, day: date, shards: list[Shard]) -> dict[str, Any]:
    """What a finished date was made of, by which a later tick knows that nothing is new."""
    config = asdict(configuration(night, day)) | {"summary": night.file.summary.model_dump()}
    text = json.dumps(config, sort_keys=True, default=str)
    found = []
    for shard in shards:
        known = info(night, shard.uri, shard.path)
        found.append([shard.path, known.size, known.mtime_ns])
    return {"job": hashlib.blake2b(text.encode(), digest_size=16).hexdigest(), "shards": found}


def nothing_new(night: Night, day: date, state: dict[str, Any]) -> bool:
    """Whether a date was finished with these shards and settings."""
    store = Store(configuration(night, day).output)
    if not (store.exists(SUCCESS) and store.exists(DONE)):
        return False
    try:
        then = json.loads(store.read(DONE))
    except ValueError:
        return False
    again = night.base.retry_failed and then.get("rows_error", 0) > 0
    return not again and {k: then.get(k) for k in state} == state


def run_date(
    night: Night,
    day: date,
    decode: Decode,
    *,
    say: Callable[[str], None] = lambda line: None,
    lease_times: LeaseTimes | None = None,
) -> DateReport:
    """Summarise what a date's output does not hold yet.

    Raises:
        ValueError: a mistake in the input, in one sentence.
        Locked: another tick works on this date.
        PipelineError: it ended early; what is committed stays.
    """
    config = configuration(night, day)
    shards = shards_of(night, day)
    if not shards:
        return DateReport(day, "empty", config.output)
    state = state_of(night, day, shards)
    if nothing_new(night, day, state):
        return DateReport(day, "nothing new", config.output)
    with hold(Store(stages_of(night, day)), lease_times) as lease:
        source = open_source(reading(night, day))
        scan = source.scan(reading(night, day))
        if not scan.rows:
            return DateReport(day, "empty", config.output)
        known, reports = _shorten(night, day, source, scan, lease, decode, say)
        _write_last(night, source, scan, lease, known)
        say(f"{folder_of(day)}: {scan.rows} documents, {len(known)} of them in parts")
        reports[stages.LAST] = decode(config)
        quality = measure_quality(night.file, config, source.schema, scan)
    bad = tuple(str(problem) for problem in scan.bad)
    report = DateReport(day, "done", config.output, reports, bad, quality)
    with hold(Store(config.output), lease_times) as lease:
        kept = quality.to_dict() | {"stages": {n: asdict(r) for n, r in reports.items()}}
        _write_json(lease.store, QUALITY, kept)
        if not scan.bad:
            _write_json(lease.store, DONE, state | {"rows_error": report.rows_error})
    return report


def _shorten(
    night: Night,
    day: date,
    source: Source,
    scan: Scan,
    lease: Lease,
    decode: Decode,
    say: Callable[[str], None],
) -> tuple[dict[stages.Id, stages.Joined], dict[str, RunReport]]:
    """Bring documents that are too long to a length that fits; the stages that it took."""
    cutter = stages.Cutter(night.factory.tokenizer(), night.budget)
    chunks = [part.chunk for part in scan.chunks]
    columns = (night.base.id_column, night.file.summary.text_column)
    long = stages.long_documents(chunks, source.schema, *columns, cutter)
    known: dict[stages.Id, stages.Joined] = {}
    reports: dict[str, RunReport] = {}
    if night.file.summary.long_documents == "truncate":
        for document, parts in long.items():
            known[document] = stages.Joined(parts[0], 1, truncated=True)
        return known, reports
    kind = source.schema.field(night.base.id_column).type
    level = stages.Parts(1, long)
    while level.of:
        say(
            f"{folder_of(day)}: {len(level.of)} documents are too long for one prompt: "
            f"{sum(map(len, level.of.values()))} parts"
        )
        table = level.table(kind)
        stages.write_stage(lease.store, level.name, {"parts.parquet": iter([table])})
        config = _stage(night, day, level.name)
        reports[level.name] = decode(config)
        stages.join(level.of, _summaries(config, level), known)
        still = {d: cutter.parts(t) for d in level.of if (t := known[d].text) is not None}
        longer = {document: parts for document, parts in still.items() if len(parts) > 1}
        if level.level == _LEVELS:
            for document, parts in longer.items():
                known[document].text, known[document].truncated = parts[0], True
            break
        level = stages.Parts(level.level + 1, longer)
    return known, reports


def _stage(night: Night, day: date, name: str) -> RunConfig:
    folder = stages_of(night, day)
    return replace(
        night.base,
        input=(f"{folder}/{stages.INPUTS}/{name}",),
        output=f"{folder}/{name}",
        id_column="id",
        keep=("document", "part"),
        on_changed="recompute",  # nobody but this program makes them
    )


def _summaries(config: RunConfig, level: stages.Parts) -> pa.Table:
    """The rows of a stage's output that belong to its present input."""
    store = Store(config.output)
    columns = ["document", "part", "status", "completion"]
    names = store.names(".parquet")
    return pa.concat_tables([read_columns(store, name, columns) for name in names])


def _write_last(
    night: Night, source: Source, scan: Scan, lease: Lease, known: dict[stages.Id, stages.Joined]
) -> None:
    columns = (night.base.id_column, night.file.summary.text_column)
    make = partial(
        stages.last_tables,
        schema=source.schema,
        keep=night.base.keep,
        columns=columns,
        known=known,
    )
    tables = {stages.file_name(part.chunk): make(part.chunk) for part in scan.chunks}
    stages.write_stage(lease.store, stages.LAST, tables)


def _write_json(store: Store, name: str, content: dict[str, Any]) -> None:
    text = json.dumps(redacted_values(content), indent=2, ensure_ascii=False, default=str)
    store.write(name, text.encode() + b"\n")
