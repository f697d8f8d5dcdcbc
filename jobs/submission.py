"""A submission: its name, what is said of it, and what an earlier one of that name means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import PurePath
from typing import Any, Literal

from jobs.failures import EXIT_ERROR_ROWS, EXIT_INCOMPLETE, EXIT_INTERRUPTED, EXIT_USAGE
from pipeline.home import local_path

# Metadata whose presence says that a job of the cluster is one of ours.
OURS = "admg_batch"
OUTPUT, JOB, LOGICAL_DATE, FINGERPRINT = "output", "job", "logical_date", "fingerprint"
_OWN_CODES = (EXIT_USAGE, EXIT_ERROR_ROWS, EXIT_INCOMPLETE, EXIT_INTERRUPTED)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class ClusterJob:
    """A job as the cluster knows it. `exit_code` is its process's, where that ended by itself."""

    id: str
    status: str
    exit_code: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    message: str = ""
    started: float | None = None
    ended: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether its status is a last one."""
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")

    @property
    def code(self) -> int | None:
        """The exit code of a command that waits for it; None while it is not over.

        What has killed the job's process, or kept it from starting, left it incomplete.
        """
        if not self.is_over:
            return None
        if self.status == "SUCCEEDED":
            return 0
        if self.status == "STOPPED":
            return EXIT_INTERRUPTED
        return self.exit_code if self.exit_code in _OWN_CODES else EXIT_INCOMPLETE

    @property
    def is_finished(self) -> bool:
        """Whether it is over because every row is in the output."""
        return self.code in (0, EXIT_ERROR_ROWS)

    @property
    def output(self) -> str:
        """The folder or URI of its output; "" where it is none of ours."""
        return self.metadata.get(OUTPUT, "")

    def to_dict(self) -> dict[str, Any]:
        """What programs are told of it."""
        names = (JOB, LOGICAL_DATE, FINGERPRINT, OUTPUT)
        known = {name: self.metadata.get(name) for name in names}
        times = {"started": self.started, "ended": self.ended}
        return {"id": self.id, "status": self.status, "exit_code": self.code} | known | times


@dataclass(frozen=True, slots=True)
class Submission:
    """A job to be sent: a name, the date that it is for, and the configuration that it runs.

    The same three make the same `id`, wherever and whenever they are submitted.

    Raises:
        ValueError: a name or date that cannot be one.
    """

    job: str
    logical_date: str
    fingerprint: str
    output: str
    version: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.job):
            right = "up to 64 letters, digits, - and _, and begin with a letter or digit"
            raise ValueError(f"--name is {self.job!r}: it must be {right}")
        parse_logical_date(self.logical_date)

    @property
    def id(self) -> str:
        """The submission id of the first attempt."""
        return f"{self.job}-{self.logical_date}-{self.fingerprint}"

    @property
    def metadata(self) -> dict[str, str]:
        """What is stored with the job on the cluster, for all who may look at it."""
        return {
            OURS: self.version,
            JOB: self.job,
            LOGICAL_DATE: self.logical_date,
            FINGERPRINT: self.fingerprint,
            OUTPUT: self.output,
        }

    def attempt(self, number: int) -> str:
        """The submission id of the n-th attempt; Ray takes each id once."""
        return self.id if number == 1 else f"{self.id}-{number}"

    def number(self, submission_id: str) -> int:
        """Which attempt an id stands for; 0 where it is another job's."""
        rest = submission_id.removeprefix(self.id)
        if rest == submission_id:
            return 0
        if not rest:
            return 1
        found = re.fullmatch(r"-([1-9]\d*)", rest)
        return int(found[1]) if found else 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with a submission.

    - "send": under `id`; `earlier` is the attempt that it goes on from, if there was one.
    - "running", "finished": it is there already, as `earlier`.
    - "taken": another job writes to the same output at this moment, `earlier`.
    """

    do: Literal["send", "running", "finished", "taken"]
    id: str = ""
    earlier: ClusterJob | None = None


def judge(submission: Submission, known: Iterable[ClusterJob], again: bool = False) -> Verdict:
    """Recognise a submission that the cluster has seen before.

    Args:
        submission: the one to be sent.
        known: the jobs of the cluster.
        again: send it though an earlier attempt has finished.
    """
    last, newest, holder = 0, None, None
    for job in known:
        number = submission.number(job.id)
        if number > last:
            last, newest = number, job
        if not job.is_over and job.output == submission.output:
            holder = job
    if newest is not None and not newest.is_over:
        return Verdict("running", newest.id, newest)
    if holder is not None:
        return Verdict("taken", holder.id, holder)
    if newest is not None and newest.is_finished and not again:
        return Verdict("finished", newest.id, newest)
    return Verdict("send", submission.attempt(last + 1), newest)


def parse_logical_date(text: str) -> date:
    """The date that `--logical-date` names.

    Raises:
        ValueError: it is none.
    """
    try:
        day: date | None = date.fromisoformat(text)
    except ValueError:
        day = None
    if day is None or day.isoformat() != text:
        raise ValueError(f"--logical-date is {text!r}: it must be a date as 2026-11-21")
    return day


def absolute(path: str) -> str:
    """A path as a submission names it, and as every process can read it.

    Of a URI a slash at its end goes: it names the same place.
    """
    if "://" in path:
        return re.sub(r"(?<=[^:/])/+$", "", path)
    return str(local_path(path).absolute())


def job_name(config: str | None, output: str) -> str:
    """The name of a job that was given none: its job file's, or its output's."""
    name = PurePath(config).stem if config is not None else PurePath(output.rstrip("/")).name
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_")[:64] or "job"
