"""What is sent and under which name, without a cluster: ids, verdicts, the folder, mistakes."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st

from jobs.job_file import read_job_file
from jobs.nightly.file import read_nightly_file
from jobs.params import run_config
from jobs.ray_jobs import RayJobs, UsedId
from jobs.shipment import JOB_FILE, add_installed, add_wheel, ship_nightly, ship_run
from jobs.submission import (
    FINGERPRINT,
    OUTPUT,
    ClusterJob,
    Submission,
    absolute,
    job_name,
    judge,
)
from jobs.submit import GRACE, Package, env_of, resources_of, send

Call = Callable[..., Result]
NIGHT = Submission("night", "2026-11-21", "0123456789ab", "/out", "1.0")
SECRET = "planted-5e5e5e"


def job(number: int = 1, status: str = "RUNNING", code: int | None = None) -> ClusterJob:
    return ClusterJob(NIGHT.attempt(number), status, code, NIGHT.metadata)


class Cluster:
    """Jobs of a cluster that keeps what it is sent and ends nothing by itself."""

    address = "http://head:8265"

    def __init__(self, *known: ClusterJob) -> None:
        self.known = {one.id: one for one in known}
        self.sent: list[tuple[str, str, dict[str, Any]]] = []
        self.job_file: str = ""

    def ours(self) -> list[ClusterJob]:
        return list(self.known.values())

    def get(self, submission_id: str) -> ClusterJob:
        return self.known[submission_id]

    def send(self, submission_id: str, entrypoint: str, **options: Any) -> None:
        if submission_id in self.known:
            raise UsedId(submission_id)
        self.sent.append((submission_id, entrypoint, options))
        folder = Path(options["runtime_env"]["working_dir"])
        if (folder / JOB_FILE).is_file():
            self.job_file = (folder / JOB_FILE).read_text(encoding="utf-8")
        self.known[submission_id] = ClusterJob(submission_id, "PENDING", None, options["metadata"])

    def follow(self, submission_id: str, write: Callable[[str], None]) -> ClusterJob:
        write("a line of its log\n")
        return ClusterJob(submission_id, "FAILED", 3, self.known[submission_id].metadata)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    one = Cluster()
    monkeypatch.setattr(RayJobs, "connect", lambda address: one)
    return one


@pytest.mark.parametrize(
    ("known", "again", "do", "submission_id"),
    [
        ([], False, "send", NIGHT.id),
        ([job()], False, "running", NIGHT.id),
        ([job(status="PENDING")], True, "running", NIGHT.id),
        ([job(status="STOPPED")], False, "send", NIGHT.id + "-2"),
        ([job(status="FAILED", code=4)], False, "send", NIGHT.id + "-2"),
        ([job(status="FAILED")], False, "send", NIGHT.id + "-2"),
        ([job(status="SUCCEEDED", code=0)], False, "finished", NIGHT.id),
        ([job(status="FAILED", code=3)], False, "finished", NIGHT.id),
        ([job(status="FAILED", code=3)], True, "send", NIGHT.id + "-2"),
        ([job(10, "STOPPED"), job(9, "SUCCEEDED")], False, "send", NIGHT.id + "-11"),
        ([job(1, "FAILED", 4), job(2)], False, "running", NIGHT.id + "-2"),
        ([ClusterJob("other", "RUNNING", None, NIGHT.metadata)], False, "taken", "other"),
        ([ClusterJob("other", "STOPPED", None, NIGHT.metadata)], False, "send", NIGHT.id),
        ([ClusterJob("other", "RUNNING", None, {OUTPUT: "/x"})], False, "send", NIGHT.id),
        ([ClusterJob(NIGHT.id + "0", "RUNNING")], False, "send", NIGHT.id),
    ],
)
def test_a_submission_is_recognised(
    known: list[ClusterJob], again: bool, do: str, submission_id: str
) -> None:
    for order in (known, known[::-1]):
        verdict = judge(NIGHT, order, again)
        assert (verdict.do, verdict.id) == (do, submission_id)


@given(st.integers(1, 10**6), st.text("0123456789ab-", max_size=6))
def test_an_id_says_which_attempt_it_is(number: int, tail: str) -> None:
    assert NIGHT.number(NIGHT.attempt(number)) == number
    told = NIGHT.number(NIGHT.id + tail)
    # "-1" is no attempt's, yet a job of that name would stand for the first.
    assert told == 0 or NIGHT.attempt(told) == NIGHT.id + tail or tail == "-1"


def test_two_who_submit_at_once_send_one_job(tmp_path: Path) -> None:
    cluster = Cluster()
    package = Package(tmp_path, ["run"])
    first_look = cluster.ours()

    class Late(Cluster):
        """Sees what the other one saw, and sends after it."""

        looks = 0

        def ours(self) -> list[ClusterJob]:
            self.looks += 1
            return first_look if self.looks == 1 else super().ours()

    late = Late()
    late.known = cluster.known
    assert send(cluster, NIGHT, package).is_new  # type: ignore[arg-type]
    second = send(late, NIGHT, package)  # type: ignore[arg-type]
    assert not second.is_new and second.verdict.do == "running"
    assert len(cluster.sent) == 1 and not late.sent


@pytest.mark.parametrize(
    ("status", "code", "ours"),
    [
        ("RUNNING", None, None),
        ("SUCCEEDED", 0, 0),
        ("STOPPED", None, 130),
        ("FAILED", 2, 2),
        ("FAILED", 3, 3),
        ("FAILED", 130, 130),
        ("FAILED", -9, 4),
        ("FAILED", 137, 4),
        ("FAILED", None, 4),
    ],
)
def test_a_jobs_end_is_an_exit_code(status: str, code: int | None, ours: int | None) -> None:
    assert ClusterJob("a", status, code).code == ours


@pytest.mark.parametrize(("name", "date"), [("", "2026-11-21"), ("a/b", "2026-11-21")])
def test_names_that_cannot_be_one(name: str, date: str) -> None:
    with pytest.raises(ValueError, match="--name"):
        Submission(name, date, "f", "o")


@pytest.mark.parametrize("date", ["", "2026-11-31", "20261121", "yesterday", "2026-11-21T00:00"])
def test_dates_that_cannot_be_one(date: str) -> None:
    with pytest.raises(ValueError, match="--logical-date"):
        Submission("a", date, "f", "o")


@pytest.mark.parametrize(
    ("config", "output", "name"),
    [
        ("jobs/night.toml", "s3://b/out", "night"),
        (None, "s3://b/my out/", "my-out"),
        (None, "/", "job"),
        ("ä.toml", "o", "job"),
    ],
)
def test_a_job_has_a_name(config: str | None, output: str, name: str) -> None:
    assert job_name(config, output) == name


def test_what_arrives_says_the_same_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, sent = tmp_path / "here", tmp_path / "sent"
    here.mkdir()
    sent.mkdir()
    (here / "t.txt").write_text("Sum up, é \\ {prompt}\n", encoding="utf-8")
    (here / "job.toml").write_text(
        'input=["in"]\noutput="out"\nmodel="demo"\n[prompt]\ntemplate="t.txt"\nchat=true\n'
        "[draft]\ndrop_quantile=0.5\n"
    )
    monkeypatch.chdir(here)
    flags = {"drop_layers": 4, "stop": ['"\n\x7f\\', "…"], "kv_budget": "1MiB", "max_tokens": 7}
    shipment = ship_run(sent, flags, "job.toml", None)
    assert shipment.output == str(here / "out")
    monkeypatch.chdir(sent)
    (here / "t.txt").unlink()
    arrived = run_config({}, read_job_file(JOB_FILE), JOB_FILE)
    assert arrived.input == (str(here / "in"),) and arrived.output == str(here / "out")
    assert arrived.prompt.template == "Sum up, é \\ {prompt}\n" and arrived.prompt.mode == "chat"
    assert arrived.engine.draft.drop.count == 4 and arrived.engine.draft.drop.quantile is None
    assert arrived.sampling.stop == ('"\n\x7f\\', "…") and arrived.sampling.max_tokens == 7


def test_the_fingerprint_is_the_whole_configuration(tmp_path: Path) -> None:
    base = {"input": ["a"], "output": "o", "model": "m"}
    others = [{"input": ["a", "b"]}, {"actors": 2}, {"retry_failed": True}, {"output": "p"}]
    digests = [ship_run(tmp_path, base | o, None, None).fingerprint for o in [{}, *others]]
    assert len(set(digests)) == len(digests)
    assert ship_run(tmp_path, base, None, "2020-01-01").fingerprint == digests[0]


def test_a_night_is_sent_with_its_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, sent = tmp_path / "here", tmp_path / "sent"
    here.mkdir()
    sent.mkdir()
    (here / "night.toml").write_text(
        'input = "in"\noutput = "out"\nmodel = "demo"\n[nightly]\ncatch_up_days = 2\n'
        '[[summary.examples]]\ntext = "a"\nsummary = "b"\n'
    )
    monkeypatch.chdir(here)
    shipment = ship_nightly(sent, {"model": "m", "max_tokens": None}, "night.toml", "2026-11-20")
    assert shipment.command == ("nightly", "--config", JOB_FILE, "--date", "2026-11-20")
    assert shipment.output == str(here / "out" / "date=2026-11-20")
    arrived = read_nightly_file(str(sent / JOB_FILE))
    assert (arrived.input, arrived.output) == (str(here / "in"), str(here / "out"))
    assert arrived.model == str(here / "m") and arrived.nightly.catch_up_days == 2
    assert arrived.summary.examples is not None and arrived.summary.examples[0].summary == "b"
    later = ship_nightly(sent, {"model": "m"}, "night.toml", "2026-11-21")
    assert later.fingerprint == shipment.fingerprint and later.output != shipment.output
    zone = ship_nightly(sent, {}, "night.toml", None)
    assert zone.logical_date < datetime.now(UTC).date().isoformat()
    for flags, config in (({"max_tokens": 3}, "night.toml"), ({}, None), ({}, "none.toml")):
        with pytest.raises(ValueError, match=r"--nightly|cannot be read"):
            ship_nightly(sent, flags, config, None)
    with pytest.raises(ValueError, match="--logical-date is 'foo': it must be a date"):
        ship_nightly(sent, {}, "night.toml", "foo")


@pytest.mark.parametrize("key", ["input", "output", "model"])
def test_credentials_in_a_uri_are_not_sent(key: str, tmp_path: Path) -> None:
    values: dict[str, Any] = {"input": ["in"], "output": "out", "model": "m"}
    uri = f"s3://key:{SECRET}@bucket/x"
    values[key] = [uri] if key == "input" else uri
    with pytest.raises(ValueError, match="credentials") as caught:
        ship_run(tmp_path, values, None, None)
    assert f"--{key}" in str(caught.value) and SECRET not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_code_is_sent_without_what_it_requires(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    add_installed(here)
    assert (here / "jobs" / "__main__.py").is_file() and (here / "admg").is_dir()
    assert not list(here.rglob("__pycache__"))
    (there / JOB_FILE).write_text("mine")
    wheel = tmp_path / "admg_batch-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in here.rglob("*"):
            if file.is_file():
                archive.write(file, file.relative_to(here))
        archive.writestr(JOB_FILE, "the wheel's")
    add_wheel(there, str(wheel))
    assert (there / "pipeline" / "run.py").read_bytes() == (
        here / "pipeline" / "run.py"
    ).read_bytes()
    assert (there / JOB_FILE).read_text() == "mine"


def test_what_is_no_wheel_of_ours(tmp_path: Path) -> None:
    text, other = tmp_path / "a.whl", tmp_path / "b.whl"
    text.write_text("text")
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("torch/__init__.py", "")
    for wheel in (text, other, tmp_path / "none.whl"):
        with pytest.raises(ValueError, match="must be the file of an admg-batch wheel"):
            add_wheel(tmp_path, str(wheel))


def test_only_named_variables_go_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "here")
    monkeypatch.setenv("OTHER", "x")
    package = Package(tmp_path, ["run", "--config", "a b"], env=env_of(["AWS_REGION"]))
    assert package.runtime_env["env_vars"] == {GRACE: "60", "AWS_REGION": "here"}
    assert package.entrypoint == "admg-batch run --config 'a b'"
    for wrong in ("AWS_REGION=zone-9", "NOT_SET_ANYWHERE", "a b"):
        with pytest.raises(ValueError, match="--env is") as caught:
            env_of([wrong])
        assert "zone-9" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "HF_TOKEN",
            "RAY_AUTH_TOKEN",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_ACCESS_KEY_ID",
            "db_password",
        ),
        *("OPENAI_API_KEY", "GOOGLE_APPLICATION_CREDENTIALS", "SSH_PRIVATE", "APIKEY"),
        *("DB_PWD", "BASIC_AUTH", "github_pat"),
    ],
)
def test_secrets_do_not_go_along(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's runtime_env_agent.log holds the value of every variable that a job is sent with."""
    monkeypatch.setenv(name, SECRET)
    for asked in (name, f"{name}={SECRET}"):
        with pytest.raises(ValueError, match=name) as caught:
            env_of([asked])
        assert SECRET not in str(caught.value)


def test_a_value_with_credentials_does_not_go_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgres://me:{SECRET}@db/x")
    with pytest.raises(ValueError, match=r"--env is DATABASE_URL, .* credentials") as caught:
        env_of(["DATABASE_URL"])
    assert SECRET not in str(caught.value)
    harmless = {"PWD": "/home", "DATA_PATH": "/data", "AUTHOR": "me"}
    for name, value in harmless.items():
        monkeypatch.setenv(name, value)
    assert env_of(list(harmless)) == harmless


def test_a_slash_at_the_end_names_the_same_output(tmp_path: Path) -> None:
    places = ("s3://b/out", "s3://b/out/", "s3://b/out//")
    values = {"input": ["in"], "model": "m"}
    sent = [ship_run(tmp_path, values | {"output": o}, None, None) for o in places]
    assert {s.output for s in sent} == {"s3://b/out"} == {absolute(o) for o in places}
    assert len({s.fingerprint for s in sent}) == 1
    assert absolute("file:///") == "file:///"


def test_resources_are_checked() -> None:
    assert resources_of(1.0, None, '{"driver": 0.5}') == {
        "entrypoint_num_cpus": 1.0,
        "entrypoint_resources": {"driver": 0.5},
    }
    for wrong in ("{", "[1]", '{"a": "1"}', '{"a": -1}', '{"a": true}'):
        with pytest.raises(ValueError, match="--entrypoint-resources"):
            resources_of(None, None, wrong)
    for number in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"--entrypoint-num-cpus is {number}"):
            resources_of(number, None, None)


ARGS = ("submit", "--input", "in", "--output", "out", "--model", "demo")


def test_a_submission_is_followed_and_its_exit_code_taken(
    admg_batch: Call, cluster: Cluster
) -> None:
    result = admg_batch(*ARGS, "--name", "night", "--logical-date", "2026-11-21")
    assert result.exit_code == 3, result.output
    ((sent_id, entrypoint, options),) = cluster.sent
    assert sent_id.startswith("night-2026-11-21-") and sent_id in result.stdout
    assert "a line of its log\n" in result.stdout
    assert entrypoint == "admg-batch run --config job.toml"
    assert options["metadata"][FINGERPRINT] == sent_id.rpartition("-")[2]
    assert not Path(options["runtime_env"]["working_dir"]).exists()
    assert f'output = "{Path.cwd() / "out"}"' in cluster.job_file


def test_no_wait_and_json_are_for_programs(admg_batch: Call, cluster: Cluster) -> None:
    first = admg_batch(*ARGS, "--no-wait", "--json")
    told = json.loads(first.stdout)
    assert first.exit_code == 0 and told["submitted"] and told["status"] == "PENDING"
    second = admg_batch(*ARGS, "--no-wait", "--json")
    again = json.loads(second.stdout)
    assert second.exit_code == 0 and not again["submitted"] and again["id"] == told["id"]
    assert "Already submitted" in second.stderr and len(cluster.sent) == 1
    other = admg_batch(*ARGS, "--max-tokens", 3, "--json")
    assert other.exit_code == 4 and "writes to" in other.stderr and len(cluster.sent) == 1
    taken = json.loads(other.stdout)
    assert (taken["verdict"], taken["submitted"], taken["id"]) == ("taken", False, told["id"])
    stopped = admg_batch("stop", "--address", "http://head:8265", "another")
    assert stopped.exit_code == 4 and "runs no job that writes to another" in stopped.stderr


@pytest.mark.parametrize(("status", "code", "ours"), [("SUCCEEDED", 0, 0), ("FAILED", 3, 3)])
def test_what_has_finished_is_not_sent_again(
    admg_batch: Call, cluster: Cluster, status: str, code: int, ours: int
) -> None:
    admg_batch(*ARGS, "--no-wait")
    (known,) = cluster.known.values()
    cluster.known[known.id] = ClusterJob(known.id, status, code, known.metadata)
    result = admg_batch(*ARGS)
    assert result.exit_code == ours and "--again" in result.output and len(cluster.sent) == 1
    assert admg_batch(*ARGS, "--again", "--no-wait").exit_code == 0
    assert [sent[0] for sent in cluster.sent] == [known.id, f"{known.id}-2"]


def test_ctrl_c_ends_the_waiting_and_not_the_job(
    admg_batch: Call, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> ClusterJob:
        raise KeyboardInterrupt

    monkeypatch.setattr(cluster, "follow", interrupted)
    result = admg_batch(*ARGS)
    assert result.exit_code == 130
    assert f"admg-batch stop --id {cluster.sent[0][0]}" in result.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (ARGS[:-2], "--model must be given"),
        ((*ARGS, "--max-tokens", "0"), "--max-tokens is 0: it must be at least 1"),
        ((*ARGS, "--config", "none.toml"), "the job file none.toml cannot be read"),
        ((*ARGS, "--template", "none.txt"), "--template is 'none.txt'"),
        ((*ARGS, "--logical-date", "today"), "--logical-date is 'today'"),
        ((*ARGS, "--name", "a b"), "--name is 'a b'"),
        ((*ARGS, "--env", "NOT_SET_ANYWHERE"), "--env is NOT_SET_ANYWHERE"),
        ((*ARGS, "--entrypoint-resources", "x"), "--entrypoint-resources is 'x'"),
        ((*ARGS, "--wheel", "none.whl"), "--wheel is 'none.whl'"),
        ((*ARGS, "--wheel", "a.whl", "--ship-code"), "contradict each other"),
        ((*ARGS, "--stop-grace", "0"), "--stop-grace"),
    ],
)
def test_mistakes_are_found_before_anything_is_sent(
    admg_batch: Call, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], message: str
) -> None:
    def connect(address: str | None) -> RayJobs:
        raise AssertionError("a cluster was asked")

    monkeypatch.setattr(RayJobs, "connect", connect)
    result = admg_batch(*args)
    assert result.exit_code == 2, result.output
    assert message in result.output and "Traceback" not in result.output


def test_an_address_must_say_what_it_is(admg_batch: Call) -> None:
    result = admg_batch(*ARGS, "--address", "head:8265")
    assert result.exit_code == 2 and "http://head:8265" in result.output
