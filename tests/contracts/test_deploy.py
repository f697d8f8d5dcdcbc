"""What lies in deploy/ is right: manifests by their schemas, commands by the command line.

KubeRay's schemas are not part of the repository; the tests that need them are skipped where
../shared/data/kuberay is absent.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from jobs.cli import main
from jobs.devices import GPUS
from jobs.nightly.file import read_nightly_file
from jobs.sizing import known_model, sequences
from jobs.submission import FINGERPRINT, Submission, absolute
from tests.contracts.deployment import (
    DAY,
    DEPLOY,
    ROOT,
    containers,
    dockerfile,
    kuberay,
    manifests,
    mistakes,
    rayjob,
)
from tests.contracts.test_documents import check_command


def test_the_rayjob_is_one_by_kuberays_schema() -> None:
    assert mistakes(kuberay("RayJob"), rayjob()) == []


def test_its_spec_is_the_template_of_kuberays_own_cron_job() -> None:
    """As the runbook says of those who prefer that."""
    spec = rayjob()["spec"]
    spec["entrypoint"], _, day = spec["entrypoint"].rpartition(" --date ")
    assert day == DAY
    check_command(spec["entrypoint"])
    del spec["metadata"]
    assert DAY not in json.dumps(spec)
    document = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCronJob",
        "metadata": {"name": "summaries"},
        "spec": {"schedule": "15 1 * * *", "timeZone": "Etc/UTC", "jobTemplate": spec},
    }
    assert mistakes(kuberay("RayCronJob"), document) == []
    document["spec"]["concurrencyPolicy"] = "Forbid"
    assert len(mistakes(kuberay("RayCronJob"), document)) == 1


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        (["spec"], "shutdownAfterJobFinished", True),
        (["spec"], "backoffLimit", "0"),
        (["spec", "rayClusterSpec", "authOptions"], "mode", "tokens"),
        (["spec", "rayClusterSpec", "headGroupSpec", "rayStartParams"], "num-gpus", 0),
        (["spec", "rayClusterSpec", "headGroupSpec", "template", "spec"], "gracePeriod", 1),
    ],
)
def test_mistakes_in_the_rayjob_are_found(path: list[str], key: str, value: Any) -> None:
    document = rayjob()
    place = document
    for part in path:
        place = place[part]
    place[key] = value
    assert len(mistakes(kuberay("RayJob"), document)) == 1


def test_the_night_is_one_that_goes_on_by_itself_and_ends_with_its_cluster() -> None:
    spec = rayjob()["spec"]
    assert spec["shutdownAfterJobFinishes"] is True and spec["backoffLimit"] == 0
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}
    head = cluster["headGroupSpec"]["template"]["spec"]
    asked = json.dumps(head["containers"])
    assert "nvidia.com/gpu" not in asked
    waits = {e["name"]: e.get("value") for e in head["containers"][0]["env"]}
    assert int(waits["RAY_JOB_STOP_WAIT_TIME_S"]) > 3
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        grace = group["template"]["spec"]["terminationGracePeriodSeconds"]
        assert grace > int(waits["RAY_JOB_STOP_WAIT_TIME_S"])
        assert group["template"]["spec"]["securityContext"]["runAsNonRoot"] is True


def test_versions_and_numbers_agree() -> None:
    """What stands in several files: Ray's version, ours, the image, GPUs and actors."""
    cluster = rayjob()["spec"]["rayClusterSpec"]
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    assert cluster["rayVersion"] == pinned["ray"]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = {c["image"] for c in containers(rayjob())}
    launched = yaml.safe_load((DEPLOY / "cluster.yaml").read_text())["docker"]["image"]
    assert images == {launched} == {f"registry.example.com/admg-batch:{version}"}
    assert f"-t {launched} ." in (DEPLOY / "Dockerfile").read_text()
    gpus = sum(
        group["replicas"] * int(c["resources"]["limits"]["nvidia.com/gpu"])
        for group in cluster["workerGroupSpecs"]
        for c in group["template"]["spec"]["containers"]
    )
    engine = read_nightly_file(str(DEPLOY / "summaries.toml")).engine
    assert engine.actors == gpus and engine.gpus_per_actor == 1.0
    assert engine.max_model_len is not None and engine.max_num_seqs is not None
    fit = sequences(known_model("Llama-2-13b"), GPUS["H200"], engine.max_model_len)
    assert engine.max_num_seqs <= fit


def test_status_and_stop_know_the_night_by_what_it_says_of_itself() -> None:
    said = rayjob()["spec"]["metadata"]
    night = Submission(said["job"], said["logical_date"], "", said["output"], said["admg_batch"])
    assert said == {k: v for k, v in night.metadata.items() if k != FINGERPRINT}
    output = read_nightly_file(str(DEPLOY / "summaries.toml")).output
    assert night.output == absolute(f"{output}/date={DAY}")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert night.version == version


def test_mounts_are_of_volumes_that_are_there() -> None:
    cluster = rayjob()["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        spec = group["template"]["spec"]
        volumes = {v["name"]: v for v in spec["volumes"]}
        mounted = {m["name"]: m for c in spec["containers"] for m in c["volumeMounts"]}
        assert mounted.keys() == volumes.keys()
        assert mounted["models"]["readOnly"] and mounted["models"]["mountPath"] == "/models"
        assert f"ADMG_BATCH_CACHE={mounted['cache']['mountPath']}" in dockerfile()
    assert str(read_nightly_file(str(DEPLOY / "summaries.toml")).model).startswith("/models/")
    head = cluster["headGroupSpec"]["template"]["spec"]
    mount = next(m for m in head["containers"][0]["volumeMounts"] if m["name"] == "job")
    assert f"--config {mount['mountPath']}/summaries.toml" in rayjob()["spec"]["entrypoint"]


def command_lines(document: Any) -> Iterator[str]:
    """Every string in a manifest, and every line of a script in it, that calls us."""
    if isinstance(document, dict):
        document = list(document.values())
    if isinstance(document, list):
        for part in document:
            yield from command_lines(part)
    elif isinstance(document, str):
        yield from (line for line in document.splitlines() if "admg-batch " in line)


@pytest.mark.parametrize("name", ["rayjob.yaml", "cronjob.yaml", "cluster.yaml"])
def test_commands_in_manifests_are_real(name: str) -> None:
    found = [line for document in manifests(name) for line in command_lines(document)]
    assert found or name != "rayjob.yaml"
    for line in found:
        check_command(line.replace("yyyy-mm-dd", DAY))


def test_commands_in_comments_are_real() -> None:
    for file in sorted(DEPLOY.glob("*")):
        if not file.is_file() or file.suffix == ".md":
            continue
        for line in re.findall(r"`(admg-batch [^`\n]+)`", file.read_text()):
            if len(line.split()) > 2:
                check_command(line)


_SECRET = re.compile(r"secret|token|password|passwd|credential|access_?key|api_?key", re.I)


def test_no_manifest_holds_a_secret() -> None:
    """Not a literal value under a name that says secret, and nothing that looks like a key."""
    for name in ("rayjob.yaml", "cronjob.yaml"):
        for document in manifests(name):
            assert document["kind"] != "Secret"
            for container in containers(document):
                for variable in container.get("env", ()):
                    assert not (_SECRET.search(variable["name"]) and "value" in variable)
    for file in (f for f in DEPLOY.iterdir() if f.is_file()):
        text = file.read_text()
        assert not re.search(r"AKIA[0-9A-Z]{16}|hf_[A-Za-z0-9]{20,}|BEGIN [A-Z ]*PRIVATE KEY", text)
        assert not re.search(r"://[^/\s@]+:[^/\s@]+@", text)
        assert not re.search(r"(?i)(_token|_secret|password|_key)=['\"]?[\w+/-]{8,}", text)


def test_the_runbooks_sizing_table_is_what_the_command_computes() -> None:
    text = (DEPLOY / "README.md").read_text()
    found = re.search(r"<!-- sizing -->\n(.*?)<!-- /sizing -->", text, re.S)
    assert found is not None
    result = CliRunner().invoke(main, ["sizing"])
    assert result.exit_code == 0
    assert found[1].strip() == result.output.strip(), "admg-batch sizing prints the table anew"
    assert "computed" in text[: found.start()].rsplit("\n## ", 1)[-1]
