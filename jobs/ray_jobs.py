"""A cluster's jobs, through Ray's Jobs API; what goes wrong there, in sentences.

Ray takes the token from `RAY_AUTH_TOKEN`, from the file `RAY_AUTH_TOKEN_PATH` or from
`~/.ray/auth_token`, and sends it where `RAY_AUTH_MODE` is `token`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from jobs.failures import EXIT_INCOMPLETE, Failure
from jobs.submission import OURS, ClusterJob
from pipeline.redaction import redacted
from pipeline.retry import Patience

if TYPE_CHECKING:
    from ray.dashboard.modules.job.pydantic_models import JobDetails
    from ray.job_submission import JobSubmissionClient

T = TypeVar("T")

ADDRESS = "RAY_API_SERVER_ADDRESS"
POLL_SECONDS = 0.5
_RECONNECTS, _RECONNECT_SECONDS = 10, 2.0
# The agent of a node, which starts jobs, comes up after the head that answers.
_STARTING = Patience(60.0)
# A head that has much to do refuses connections, or drops them, now and then.
_BUSY = Patience(10.0)
_CHATTY = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
_TOKEN = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"


class UsedId(Exception):
    """A job of this submission id is there already."""


def has_address(address: str | None) -> bool:
    """Whether a cluster is named, by an option or in the environment."""
    return bool(address or os.environ.get(ADDRESS) or os.environ.get("RAY_ADDRESS"))


class RayJobs:
    """The jobs of one cluster. Every method raises `Failure` where the cluster is out of reach."""

    def __init__(self, client: JobSubmissionClient) -> None:
        self._client = client

    @classmethod
    def connect(cls, address: str | None) -> RayJobs:
        """The cluster at this address, else at `RAY_API_SERVER_ADDRESS`, `RAY_ADDRESS`, or here.

        Raises:
            ValueError: an address that cannot be one.
            Failure: no cluster answers there, or it does not take the token.
        """
        if address and "://" not in address and address != "auto":
            url = f"http://{address}"
            raise ValueError(f"--address is {address!r}: it must be a URL as {url}, or auto")
        headers = _headers()
        if "RAY_AUTH_MODE" not in os.environ and _token_is_given():
            os.environ["RAY_AUTH_MODE"] = "token"  # Ray reads it when it is imported
        from ray.job_submission import JobSubmissionClient

        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        with _sentences(_place(address)), _overriding(address):
            return cls(_asked(lambda: JobSubmissionClient(headers=headers)))

    @property
    def address(self) -> str:
        """The URL that answers, for people."""
        return redacted(str(self._client.get_address()))

    def ours(self) -> list[ClusterJob]:
        """The jobs that `admg-batch submit` has sent, the oldest first."""
        with _sentences(self.address):
            listed = _asked(self._client.list_jobs)
            found = [_job(details) for details in listed if details.submission_id]
        return sorted((j for j in found if OURS in j.metadata), key=lambda j: j.started or 0.0)

    def get(self, submission_id: str) -> ClusterJob:
        """One job.

        Raises:
            ValueError: there is none of this id.
        """
        with _sentences(self.address):
            try:
                return _job(_asked(lambda: self._client.get_job_info(submission_id)))
            except RuntimeError as error:
                if "404" not in str(error):
                    raise
        raise ValueError(f"--id is {submission_id!r}: {self.address} knows no such job")

    def send(self, submission_id: str, entrypoint: str, **options: Any) -> None:
        """Submit a job; where the cluster has only just come up, once it takes any.

        Raises:
            UsedId: somebody else was faster.
        """

        def submit() -> None:
            self._client.submit_job(submission_id=submission_id, entrypoint=entrypoint, **options)

        with _sentences(self.address):
            try:
                _STARTING.again(submit, lambda error: "No available agent" in str(error))
            except RuntimeError as error:
                if "already exists" in str(error):
                    raise UsedId(submission_id) from error
                raise

    def stop(self, submission_id: str) -> None:
        """Ask a job to end."""
        with _sentences(self.address):
            self._client.stop_job(submission_id)

    def wait(self, submission_id: str, seconds: float | None = None) -> ClusterJob:
        """The job when it is over, or as it is after so many seconds."""
        began = time.monotonic()
        while True:
            job = self.get(submission_id)
            if job.is_over or (seconds is not None and time.monotonic() - began >= seconds):
                return job
            time.sleep(POLL_SECONDS)

    def follow(self, submission_id: str, write: Callable[[str], None]) -> ClusterJob:
        """Hand on what a job writes until it is over; a connection that breaks is made again."""
        from aiohttp import ClientError

        written, tries = 0, 0

        async def tail() -> None:
            nonlocal written
            seen = 0  # the server begins with the first line each time
            async for text in self._client.tail_job_logs(submission_id):
                new = text[max(0, written - seen) :]
                seen += len(text)
                written = max(written, seen)
                if new:
                    write(new)

        while True:
            before = written
            try:
                asyncio.run(tail())
            except BrokenPipeError:
                raise  # who reads what we write has gone, not the cluster
            except (ClientError, OSError, RuntimeError) as error:
                tries = 0 if written > before else tries + 1
                if tries > _RECONNECTS:
                    raise _unreachable(self.address, error) from error
                time.sleep(_RECONNECT_SECONDS)
                continue
            return self.wait(submission_id)


def _job(details: JobDetails) -> ClusterJob:
    return ClusterJob(
        id=details.submission_id or details.job_id or "",
        status=details.status.value,
        exit_code=details.driver_exit_code,
        metadata=details.metadata or {},
        message=details.message or "",
        started=None if not details.start_time else details.start_time / 1000,
        ended=None if not details.end_time else details.end_time / 1000,
    )


def _headers() -> dict[str, Any] | None:
    """What Ray's own command sends along: some proxies ask for it."""
    given = os.environ.get("RAY_JOB_HEADERS")
    if given is None:
        return None
    try:
        headers = json.loads(given)
    except ValueError:
        headers = None
    if not isinstance(headers, dict):
        raise ValueError('RAY_JOB_HEADERS must be JSON, as {"name": "value"}')
    return headers


def _token_is_given() -> bool:
    """Only a token that is named: the one in the home folder may be another cluster's."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or bool(path and Path(path).is_file())


@contextmanager
def _overriding(address: str | None) -> Iterator[None]:
    """An option beats the environment; for Ray it is the other way round."""
    before = os.environ.get(ADDRESS)
    if address:
        os.environ[ADDRESS] = address
    try:
        yield
    finally:
        if address:
            os.environ.pop(ADDRESS)
            if before is not None:
                os.environ[ADDRESS] = before


def _place(address: str | None) -> str:
    """Where a cluster is looked for, for people."""
    given = address or os.environ.get(ADDRESS) or os.environ.get("RAY_ADDRESS")
    return redacted(given or "this machine")


def _asked(question: Callable[[], T]) -> T:
    """What changes nothing, asked again for a while where the connection does not hold."""
    from requests.exceptions import ConnectionError as Dropped

    return _BUSY.again(question, lambda error: isinstance(error, ConnectionError | Dropped))


def _unreachable(place: str, error: Exception) -> Failure:
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return Failure(f"no Ray cluster answers at {place}: {redacted(first)}", EXIT_INCOMPLETE)


@contextmanager
def _sentences(place: str) -> Iterator[None]:
    """Turn what Ray raises into a sentence and an exit code."""
    from ray.exceptions import AuthenticationError
    from requests.exceptions import RequestException

    try:
        yield
    except AuthenticationError as error:
        first = str(error).strip().splitlines()[0]
        raise Failure(f"{place}: {first}. Right would be: {_TOKEN}") from error
    except (RequestException, OSError) as error:
        raise _unreachable(place, error) from error
    except RuntimeError as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
        said = lines[0] if len(lines) == 1 else f"{lines[0].strip()} ... {lines[-1].strip()}"
        raise Failure(f"{place} refuses: {said}", EXIT_INCOMPLETE) from error
