"""How far an output is, from what lies in it: heartbeat, lease, manifest and committed files."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from jobs.nightly.dates import STAGES, date_of
from pipeline.heartbeat import ENDS, read_heartbeat
from pipeline.holder import holder_of
from pipeline.manifest import MANIFEST, SUCCESS, read_manifest
from pipeline.owner import Owner
from pipeline.redaction import redacted
from pipeline.retry import one_line
from pipeline.storage import Store

State = Literal["empty", "running", "silent", "incomplete", "finished"]
# Beats that may be missed before a run counts as silent, and the seconds that are no silence.
_BEATS, _SECONDS = 6, 60.0
_LIVE = ("tokens_per_second", "mean_acceptance_length", "speedup", "eta_seconds", "actors", "phase")


@dataclass(frozen=True, slots=True)
class OutputState:
    """One output at one moment; None where nothing says so.

    `state` is "running" while a run holds the output, "silent" where it has given no sign of life
    for long, and "finished" when every row is there. `rows_done` are decoded rows while it runs and
    committed ones after it. Tokens per second, speedup and the time left are those of the run that
    runs now; `errors_by_code` counts its error rows, or the output's when nothing runs.
    """

    output: str
    state: State
    rows_total: int | None = None
    rows_done: int = 0
    errors_by_code: dict[str, int] = field(default_factory=dict)
    tokens_per_second: float | None = None
    mean_acceptance_length: float | None = None
    speedup: float | None = None
    eta_seconds: float | None = None
    actors: int | None = None
    phase: str | None = None
    reason: str | None = None
    holder: str | None = None
    heartbeat_age_seconds: float | None = None

    @property
    def rows_left(self) -> int | None:
        """Rows that are still to be decoded."""
        return None if self.rows_total is None else max(0, self.rows_total - self.rows_done)

    def to_dict(self) -> dict[str, Any]:
        """The values by name, fit for JSON."""
        return asdict(self) | {"rows_left": self.rows_left}


def output_state(output: str, now: datetime | None = None) -> OutputState:
    """Look at an output; nothing in it is touched.

    Raises:
        ValueError: no usable path, or files that somebody else has changed.
        PipelineError: the storage cannot be reached.
    """
    store = Store(output)
    beat = read_heartbeat(store) or {}
    owner = holder_of(store)
    if owner is None and (owner := _holder_of_stages(output)) is not None:
        beat = _latest([beat, *_beats_of_stages(output)], owner)
    if owner is not None and (beat.get("host"), beat.get("pid")) != (owner.host, owner.pid):
        beat = {}  # an earlier run's: this one has not begun to tell
    age = _age(beat, now or datetime.now(UTC))
    told: dict[str, Any] = {
        "output": redacted(output),
        "holder": None if owner is None else str(owner),
        "heartbeat_age_seconds": age,
        "reason": beat.get("reason") or None,
    }
    if owner is not None:
        silent = _is_silent(owner, beat, age)
        live = {name: beat.get(name) for name in _LIVE}
        return OutputState(
            **told,
            state="silent" if silent else "running",
            rows_total=beat.get("rows_total") or None,
            rows_done=beat.get("rows_done") or 0,
            errors_by_code=beat.get("errors_by_code") or {},
            **(dict.fromkeys(_LIVE) | {"phase": beat.get("phase")} if silent else live),
        )
    if store.exists(SUCCESS) and store.exists(MANIFEST):
        return _finished(output, told)
    rows, errors = _committed(store)
    total = beat.get("rows_total") or None
    state: State = "incomplete" if rows or beat else "empty"
    return OutputState(
        **told,
        state=state,
        rows_total=total,
        rows_done=rows,
        errors_by_code=errors,
        phase=beat.get("phase"),
    )


def holder(output: str) -> Owner | None:
    """Who works on an output at this moment, on the stages before it included.

    A night holds `.stages/date=...` beside its output while it summarises parts of documents.

    Raises:
        ValueError: no usable path.
        StorageError: the storage cannot be reached.
    """
    return holder_of(Store(output)) or _holder_of_stages(output)


def _holder_of_stages(output: str) -> Owner | None:
    stages = _stages(output)
    return None if stages is None else holder_of(stages)


def _stages(output: str) -> Store | None:
    """Where the stages of a night's output lie; None for an output that is no night's."""
    above, slash, name = output.rstrip("/").rpartition("/")
    return None if date_of(name) is None else Store(f"{above}{slash}{STAGES}/{name}")


def _beats_of_stages(output: str) -> list[dict[str, Any]]:
    stages = _stages(output)
    if stages is None:
        return []
    found = stages.listing()
    folders = sorted(f.base_name for f in found if f.type == fs.FileType.Directory)
    beats = {name: read_heartbeat(Store(f"{stages.uri}/{name}")) for name in folders}
    told = ((name, beat) for name, beat in beats.items() if beat is not None)
    return [beat | {"phase": f"{name}: {beat['phase']}"} for name, beat in told]


def _latest(beats: list[dict[str, Any]], owner: Owner) -> dict[str, Any]:
    """The latest heartbeat of a process that is still at work."""
    its = [b for b in beats if (b.get("host"), b.get("pid")) == (owner.host, owner.pid)]
    return max(its, key=lambda beat: str(beat["time"]), default={})


def _finished(output: str, told: dict[str, Any]) -> OutputState:
    manifest = read_manifest(output)
    rows = sum(file["rows"] for file in manifest["files"])
    return OutputState(
        **told,
        state="finished",
        rows_total=rows,
        rows_done=rows,
        errors_by_code=manifest["errors_by_code"],
        tokens_per_second=manifest["run"].get("tokens_per_second") or None,
        mean_acceptance_length=manifest["statistics"].get("mean_acceptance_length"),
        speedup=manifest["statistics"].get("speedup"),
        eta_seconds=0.0,
    )


def _is_silent(owner: Owner, beat: dict[str, Any], age: float | None) -> bool:
    """A process of this machine that lives is working, whatever its heartbeat says."""
    between = str(beat.get("phase")).endswith(ENDS)  # a night goes on to its next stage
    if owner.is_here or age is None or between:
        return False
    return age > max(_SECONDS, _BEATS * float(beat.get("every_seconds") or 0))


def _age(beat: dict[str, Any], now: datetime) -> float | None:
    try:
        return max(0.0, (now - datetime.fromisoformat(beat["time"])).total_seconds())
    except (KeyError, TypeError, ValueError):
        return None


def _committed(store: Store) -> tuple[int, dict[str, int]]:
    """Rows in the files that are there, and errors by code."""
    rows, errors = 0, Counter[str]()
    for name in store.names(".parquet"):

        def counted(path: str = store.path(name)) -> tuple[int, list[dict[str, Any]]]:
            with store.filesystem.open_input_file(path) as stream:
                file = pq.ParquetFile(stream)
                if "error_code" not in file.schema_arrow.names:
                    return file.metadata.num_rows, []
                codes = pc.value_counts(file.read(["error_code"])["error_code"])
                return file.metadata.num_rows, codes.to_pylist()

        try:
            count, codes = store.trying(f"reading {store.path(name)}", counted)
        except FileNotFoundError:
            continue  # merged into another one at this moment
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{store.uri}: {name} cannot be read: {one_line(error)}") from error
        rows += count
        errors.update({c["values"]: c["counts"] for c in codes})
    return rows, {code: n for code, n in errors.most_common() if code is not None}
