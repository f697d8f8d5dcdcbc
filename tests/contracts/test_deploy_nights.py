"""Every night: the CronJob, what kustomize makes of the folder, and the script that creates it."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.contracts.deployment import (
    DAY,
    DEPLOY,
    manifests,
)

MINUTES = 29920395  # since 1970: the morning after, 01:15


def test_the_cronjob_runs_one_night_at_a_time_with_few_rights() -> None:
    """batch/v1 has no schema here, so its fields are held against this list."""
    documents = {d["kind"]: d for d in manifests("cronjob.yaml")}
    assert documents.keys() == {"ServiceAccount", "Role", "RoleBinding", "CronJob"}
    cron = documents["CronJob"]
    assert cron["apiVersion"] == "batch/v1" and cron.keys() == {
        *("apiVersion", "kind", "metadata", "spec")
    }
    spec = cron["spec"]
    assert spec.keys() <= {
        *("schedule", "timeZone", "concurrencyPolicy", "startingDeadlineSeconds", "suspend"),
        *("successfulJobsHistoryLimit", "failedJobsHistoryLimit", "jobTemplate"),
    }
    assert spec["concurrencyPolicy"] == "Forbid" and spec["timeZone"] == "Etc/UTC"
    assert re.fullmatch(r"\d+ \d+ \* \* \*", spec["schedule"])
    job = spec["jobTemplate"]["spec"]
    assert job.keys() <= {"backoffLimit", "podFailurePolicy", "template", "activeDeadlineSeconds"}
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy asks for it
    name = documents["ServiceAccount"]["metadata"]["name"]
    assert pod["serviceAccountName"] == name
    assert documents["RoleBinding"]["subjects"] == [{"kind": "ServiceAccount", "name": name}]
    assert documents["RoleBinding"]["roleRef"]["name"] == documents["Role"]["metadata"]["name"]
    assert [rule["resources"] for rule in documents["Role"]["rules"]] == [["rayjobs"]]
    [container] = pod["containers"]
    [rule] = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert container["env"][0]["valueFrom"]["fieldRef"]["fieldPath"].endswith("job-name']")


def test_kustomize_puts_the_pieces_together() -> None:
    """Config maps are made from the files, under the names that the manifests mount."""
    made = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())
    assert made["generatorOptions"]["disableNameSuffixHash"] is True
    maps = {g["name"]: g["files"] for g in made["configMapGenerator"]}
    assert all((DEPLOY / f).is_file() for files in maps.values() for f in files)
    used = re.findall(
        r"configMap:\n\s+name: (\S+)",
        "".join((DEPLOY / f).read_text() for f in ("rayjob.yaml", "cronjob.yaml")),
    )
    assert sorted(used) == sorted(maps)
    cron = next(d for d in manifests("cronjob.yaml") if d["kind"] == "CronJob")
    [container] = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    place, name = container["command"][-1].rsplit("/", 1)
    assert name in maps["summaries-night"] and "rayjob.yaml" in maps["summaries-night"]
    assert place == container["volumeMounts"][0]["mountPath"]
    if not shutil.which("kubectl"):
        return
    command = ["kubectl", "kustomize", str(DEPLOY)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    documents = list(yaml.safe_load_all(done.stdout))
    assert {d["metadata"]["namespace"] for d in documents} == {"batch"}
    night = next(d for d in documents if d["metadata"]["name"] == "summaries-night")
    assert yaml.safe_load(night["data"]["rayjob.yaml"])["kind"] == "RayJob"


# Keeps the RayJobs of a make-believe cluster as files: state on the first line.
_KUBECTL = """#!/bin/sh
echo "$@" >> "$CLUSTER/calls"
case $1 in
    get) cat "$CLUSTER/state" 2>/dev/null; exit 0 ;;
    delete) rm "$CLUSTER/state" ;;
    create)
        cat > "$CLUSTER/created"
        if [ -e "$CLUSTER/state" ]; then echo AlreadyExists >&2; exit 1; fi
        cp "$CLUSTER/next" "$CLUSTER/state" ;;
esac
"""


def night(folder: Path, before: str | None, after: str, job: str = f"summaries-{MINUTES}") -> int:
    """Run create.sh against a cluster whose RayJob, if there is one, is in the state `before`."""
    folder.mkdir()
    for name in ("create.sh", "rayjob.yaml"):
        shutil.copy(DEPLOY / name, folder)
    (folder / "kubectl").write_text(_KUBECTL)
    (folder / "kubectl").chmod(stat.S_IRWXU)
    if before is not None:
        (folder / "state").write_text(before)
    (folder / "next").write_text(after)
    env = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "CLUSTER": str(folder)}
    command = ["sh", str(folder / "create.sh")]
    env |= {"JOB_NAME": job, "POLL_SECONDS": "0.1"}
    return subprocess.run(command, env=env, capture_output=True, timeout=30, check=False).returncode


_FAILED = "FAILED Failed Job entrypoint command failed with exit code "


@pytest.mark.parametrize(
    ("before", "after", "code", "created"),
    [
        (None, "SUCCEEDED Complete ", 0, True),
        ("SUCCEEDED Complete ", "", 0, False),
        (f"{_FAILED}4, last", "SUCCEEDED Complete ", 0, True),
        (f"{_FAILED}3, last", "", 3, False),
        ("STOPPED Complete ", "SUCCEEDED Complete ", 0, True),
        (None, "STOPPED Complete ", 130, True),
        (None, f"{_FAILED}2, last", 2, True),
        (None, f"{_FAILED}4, last", 1, True),
        (None, " ValidationFailed no such field", 1, True),
        (None, " Failed DeadlineExceeded", 1, True),
        (None, "", 130, True),
    ],
)
def test_a_tick_creates_the_night_once_and_tells_how_it_ended(
    tmp_path: Path, before: str | None, after: str, code: int, created: bool
) -> None:
    folder = tmp_path / "cluster"
    assert night(folder, before, after) == code
    assert (folder / "created").exists() == created
    if created:
        text = (folder / "created").read_text()
        made = yaml.safe_load(text)
        assert made["metadata"]["name"] == f"summaries-{DAY}" and "yyyy" not in text
        assert f"--date {DAY}" in made["spec"]["entrypoint"]


def test_the_runbooks_name_for_a_night_is_that_nights(tmp_path: Path) -> None:
    text = (DEPLOY / "README.md").read_text()
    found = re.search(r"--from=cronjob/summaries \\\n\s+(summaries-\$\(\(.*\)\))$", text, re.M)
    assert found is not None
    said = subprocess.run(["bash", "-c", f"echo {found[1]}"], capture_output=True, text=True)
    assert night(tmp_path / "cluster", None, "SUCCEEDED Complete ", said.stdout.strip()) == 0
    made = yaml.safe_load((tmp_path / "cluster" / "created").read_text())
    assert made["metadata"]["name"] == "summaries-2026-11-20"


@pytest.mark.parametrize("job", ["summaries", "summaries-", "summaries-12x", "s-$(touch x)"])
def test_a_tick_without_a_date_is_refused(tmp_path: Path, job: str) -> None:
    assert night(tmp_path / "cluster", None, "", job) == 2
    assert not (tmp_path / "cluster" / "calls").exists()
