"""What the Jobs API may do to a command: connections that break, clusters that refuse."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from ray.exceptions import AuthenticationError

from jobs import ray_jobs
from jobs.failures import Failure
from jobs.ray_jobs import ADDRESS, RayJobs, UsedId
from pipeline.retry import Patience

LOG = ["one\n", "two\n", "three\nfour", " and five\n"]


class Client:
    """A client whose connections break after so many pieces of the log, one after another."""

    def __init__(self, *breaks: int, error: Exception | None = None) -> None:
        self.breaks = list(breaks)
        self.error = error
        self.tails = 0

    def get_address(self) -> str:
        return "http://user:planted@head:8265"

    async def tail_job_logs(self, submission_id: str) -> AsyncIterator[str]:
        self.tails += 1
        end = self.breaks.pop(0) if self.breaks else None
        for piece in LOG[:end]:
            yield piece
        if end is not None:
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")

    def get_job_info(self, submission_id: str) -> Any:
        if self.error is not None:
            raise self.error
        status = SimpleNamespace(value="FAILED")
        return SimpleNamespace(
            submission_id=submission_id,
            job_id=None,
            status=status,
            driver_exit_code=3,
            metadata=None,
            message=None,
            start_time=1000,
            end_time=None,
        )

    def submit_job(self, **_: Any) -> None:
        assert self.error is not None
        raise self.error


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs, "_RECONNECT_SECONDS", 0.0)
    monkeypatch.setattr(ray_jobs, "_STARTING", Patience(60.0, first=0.0))
    monkeypatch.setattr(ray_jobs, "_BUSY", Patience(0.2, first=0.01, longest=0.05))


@pytest.mark.parametrize("breaks", [(), (0,), (2, 0, 1, 4), (3, 3, 4)])
def test_each_line_of_a_log_is_shown_once(breaks: tuple[int, ...]) -> None:
    client, shown = Client(*breaks), []
    job = RayJobs(client).follow("a", shown.append)  # type: ignore[arg-type]
    assert "".join(shown) == "".join(LOG)
    assert job.code == 3 and client.tails == len(breaks) + 1


def test_a_log_that_nobody_reads_any_more_is_no_fault_of_the_cluster() -> None:
    client = Client()

    def write(_: str) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        RayJobs(client).follow("a", write)  # type: ignore[arg-type]
    assert client.tails == 1


def test_a_cluster_that_does_not_come_back_is_given_up() -> None:
    client, shown = Client(*[2] * 100), []
    with pytest.raises(Failure, match=r"no Ray cluster answers at http://.*head:8265") as caught:
        RayJobs(client).follow("a", shown.append)  # type: ignore[arg-type]
    assert caught.value.exit_code == 4 and "planted" not in str(caught.value)
    assert "".join(shown) == "one\ntwo\n" and client.tails < 20


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (requests.ConnectionError("no route"), 4, "no Ray cluster answers"),
        (TimeoutError("late"), 4, "no Ray cluster answers"),
        (RuntimeError("Request failed with status code 500: Traceback\n\n x\nBoom: y"), 4, "Boom"),
        (AuthenticationError("Missing token"), 2, "RAY_AUTH_MODE=token"),
    ],
)
def test_what_goes_wrong_is_one_sentence(error: Exception, code: int, said: str) -> None:
    with pytest.raises(Failure) as caught:
        RayJobs(Client(error=error)).get("a")  # type: ignore[arg-type]
    assert caught.value.exit_code == code and said in str(caught.value)
    assert "\n" not in str(caught.value) and "planted" not in str(caught.value)


def test_a_job_that_is_not_there_is_the_users_mistake() -> None:
    error = RuntimeError("Request failed with status code 404: Job a does not exist.")
    with pytest.raises(ValueError, match="--id is 'a'"):
        RayJobs(Client(error=error)).get("a")  # type: ignore[arg-type]


def test_a_used_id_is_told_apart() -> None:
    text = (
        "Request failed with status code 400: ValueError: Job with submission_id a already exists"
    )
    with pytest.raises(UsedId):
        RayJobs(Client(error=RuntimeError(text))).send("a", "x")  # type: ignore[arg-type]


@pytest.mark.parametrize("refusals", [2, 1000])
def test_a_refused_connection_is_tried_again_for_a_while(
    refusals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def connecting(**_: Any) -> Client:
        asked.append(1)
        if len(asked) <= refusals:
            raise ConnectionError("Failed to connect to Ray")
        return Client()

    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", connecting)
    if refusals == 2:
        assert "head:8265" in RayJobs.connect("http://head:8265").address
        assert len(asked) == 3
    else:
        with pytest.raises(Failure, match="no Ray cluster answers at http://nowhere:8265"):
            RayJobs.connect("http://nowhere:8265")
        assert 3 < len(asked) < refusals


def test_a_question_whose_connection_is_dropped_is_asked_again() -> None:
    client, drops = Client(), [requests.ConnectionError("Connection aborted."), ConnectionError()]
    answer = client.get_job_info

    def asked(submission_id: str) -> Any:
        if drops:
            raise drops.pop()
        return answer(submission_id)

    client.get_job_info = asked  # type: ignore[method-assign]
    assert RayJobs(client).get("a").code == 3  # type: ignore[arg-type]


def test_a_cluster_that_has_just_come_up_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its head answers before it takes jobs; what else goes wrong is not tried again."""
    late = RuntimeError(
        "Request failed with status code 500: No available agent to submit job, please try again "
        "later.."
    )
    answers: list[Exception | None] = [late, late, None]
    client = Client()

    def submit_job(**_: Any) -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    monkeypatch.setattr(client, "submit_job", submit_job)
    RayJobs(client).send("a", "x")  # type: ignore[arg-type]
    assert not answers
    answers += [late, RuntimeError("Request failed with status code 500: disk is full")]
    with pytest.raises(Failure, match="disk is full"):
        RayJobs(client).send("a", "x")  # type: ignore[arg-type]
    monkeypatch.setattr(ray_jobs, "_STARTING", Patience(0.0))
    answers.append(late)
    with pytest.raises(Failure, match="No available agent"):
        RayJobs(client).send("a", "x")  # type: ignore[arg-type]


def test_an_option_beats_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def client(headers: object) -> Client:
        seen.append((os.environ.get(ADDRESS), headers))
        return Client()

    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", client)
    monkeypatch.setenv(ADDRESS, "http://wrong:1")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    RayJobs.connect("http://right:2")
    assert os.environ[ADDRESS] == "http://wrong:1"
    RayJobs.connect(None)
    monkeypatch.setenv("RAY_JOB_HEADERS", '{"x": "y"}')
    RayJobs.connect(None)
    assert seen == [
        ("http://right:2", None),
        ("http://wrong:1", None),
        ("http://wrong:1", {"x": "y"}),
    ]
    monkeypatch.setenv("RAY_JOB_HEADERS", "x")
    with pytest.raises(ValueError, match="RAY_JOB_HEADERS"):
        RayJobs.connect(None)
