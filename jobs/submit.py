"""Sending a job to a Ray cluster, once."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jobs.ray_jobs import RayJobs, UsedId
from jobs.submission import ClusterJob, Submission, Verdict, judge
from pipeline.redaction import has_credentials

# Read by Ray in the job's own supervisor, so that a job can ask for its own time to end.
GRACE = "RAY_JOB_STOP_WAIT_TIME_S"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(
    r"(?i)token|secret|passw|passphrase|credential|private|key(?:_?id)?$"
    # Short ones as words only, for there are paths and patterns.
    r"|(?<![a-z])(?:pwd|auth|pat)(?![a-z])"
)
_RACES = 5


@dataclass(frozen=True, slots=True)
class Package:
    """What runs on the cluster: a folder that is sent, a command in it, and what it is given.

    `env` holds variables with their values. They go into the job's runtime environment, which Ray
    logs on every node and shows to whoever may see the job.
    """

    folder: Path
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, Any] = field(default_factory=dict)
    grace_seconds: int = 60
    own_code: bool = False

    @property
    def entrypoint(self) -> str:
        """The shell command of the job."""
        program = ["python", "-m", "jobs"] if self.own_code else ["admg-batch"]
        return shlex.join([*program, *self.command])

    @property
    def runtime_env(self) -> dict[str, Any]:
        """Ray's runtime environment of the job."""
        env = {GRACE: str(self.grace_seconds), **self.env}
        return {"working_dir": str(self.folder), "env_vars": env}


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of a submission: `verdict`, and the job that is on the cluster now."""

    verdict: Verdict
    job: ClusterJob

    @property
    def is_new(self) -> bool:
        """Whether it was sent by this call."""
        return self.verdict.do == "send"


def send(jobs: RayJobs, submission: Submission, package: Package, again: bool = False) -> Sent:
    """Submit, unless the cluster has this submission already.

    Args:
        jobs: the cluster.
        submission: what it is called.
        package: what runs.
        again: send it though an earlier attempt has finished.

    Raises:
        Failure: the cluster is out of reach, or refuses.
    """
    for _ in range(_RACES):
        verdict = judge(submission, jobs.ours(), again)
        if verdict.do == "send":
            try:
                jobs.send(
                    verdict.id,
                    package.entrypoint,
                    runtime_env=package.runtime_env,
                    metadata=submission.metadata,
                    **package.resources,
                )
            except UsedId:
                continue  # two submitted at once: the next look finds the other one
        return Sent(verdict, jobs.get(verdict.id))
    raise RuntimeError(f"{verdict.id} is taken by a job that is none of admg-batch's")


def env_of(names: Sequence[str]) -> dict[str, str]:
    """Variables of this process by name, for the job.

    Raises:
        ValueError: a name with a value, of a variable that is not set, or of a secret;
            a value with credentials in it.
    """
    found = {}
    for name in names:
        if "=" in name:
            raise ValueError(
                f"--env is {name.partition('=')[0]}=...: it must be the name alone; its value is "
                "taken from this environment, so that it stands in no history of commands"
            )
        if not _VARIABLE.fullmatch(name):
            raise ValueError(f"--env is {name!r}: it must be the name of a variable")
        if name != "PWD" and _SECRET.search(name):
            raise ValueError(
                f"--env is {name}, which looks like a secret: Ray writes what is sent along into "
                "the logs of every node, and shows it to all who may see the job. Give it to the "
                "nodes instead, as a secret of their pods or a role of theirs"
            )
        if name not in os.environ:
            raise ValueError(f"--env is {name}: it must be set in this environment")
        if has_credentials(os.environ[name]):
            raise ValueError(
                f"--env is {name}, whose value is a URI with credentials, which everybody who may "
                "look at the cluster's jobs would see: leave them out, and give them to the nodes"
            )
        found[name] = os.environ[name]
    return found


def resources_of(cpus: float | None, memory: int | None, given: str | None) -> dict[str, Any]:
    """What Ray reserves for the job's driver.

    Raises:
        ValueError: a number below 0, or text that is no JSON object of numbers.
    """
    for name, value in (("num-cpus", cpus), ("memory", memory)):
        if value is not None and not _is_amount(value):
            raise ValueError(f"--entrypoint-{name} is {value}: it must be 0 or more")
    found: dict[str, Any] = {"entrypoint_num_cpus": cpus, "entrypoint_memory": memory}
    if given is not None:
        right = 'JSON as {"driver": 1}, with an amount of 0 or more for each resource'
        try:
            resources = json.loads(given)
        except ValueError:
            resources = None
        if not isinstance(resources, dict) or not all(map(_is_amount, resources.values())):
            raise ValueError(f"--entrypoint-resources is {given!r}: it must be {right}")
        found["entrypoint_resources"] = resources
    return {name: value for name, value in found.items() if value is not None}


def _is_amount(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value < math.inf
