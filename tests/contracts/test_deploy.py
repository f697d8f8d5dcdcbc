"""What lies in deploy/ is right: manifests by their schemas, commands by the command line.

KubeRay's schemas are not part of the repository; the tests that need them are skipped where
../shared/data/kuberay is absent. Kubernetes would drop a field that it does not know without a
word, so here an unknown field is a mistake.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from jobs.cli import main
from jobs.nightly.file import read_nightly_file
from jobs.sizing import GPUS, known_model, sequences
from tests.contracts.test_documents import check_command

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SCHEMAS = ROOT.parent / "shared" / "data" / "kuberay"
DAY = "2026-11-20"
MINUTES = 29920395  # since 1970: the morning after, 01:15


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def rayjob() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "rayjob.yaml").read_text().replace("yyyy-mm-dd", DAY)))


def strict(schema: Any) -> Any:
    """A schema in which every object with named properties has no others."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict):
        made.setdefault("additionalProperties", False)
    return made


def kuberay(kind: str) -> jsonschema.Draft202012Validator:
    file = SCHEMAS / f"{kind.lower()}_v1.schema.json"
    if not file.is_file():
        pytest.skip(f"needs KubeRay's schema of {kind} at ../shared/data/kuberay")
    return jsonschema.Draft202012Validator(strict(json.loads(file.read_text())))


def mistakes(validator: jsonschema.Draft202012Validator, document: Any) -> list[str]:
    found = validator.iter_errors(document)
    return [f"{'/'.join(map(str, e.absolute_path))}: {e.message[:200]}" for e in found]


def containers(document: Any) -> Iterator[dict[str, Any]]:
    """Every container of a manifest, wherever it stands."""
    if isinstance(document, dict):
        for key, value in document.items():
            if key in ("containers", "initContainers"):
                yield from value
            else:
                yield from containers(value)
    elif isinstance(document, list):
        for part in document:
            yield from containers(part)


def test_the_rayjob_is_one_by_kuberays_schema() -> None:
    assert mistakes(kuberay("RayJob"), rayjob()) == []


def test_its_spec_is_the_template_of_kuberays_own_cron_job() -> None:
    """As the runbook says of those who prefer that."""
    spec = rayjob()["spec"]
    spec["entrypoint"], _, day = spec["entrypoint"].rpartition(" --date ")
    assert day == DAY
    check_command(spec["entrypoint"])
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
    assert engine.actors == gpus
    assert engine.max_model_len is not None and engine.max_num_seqs is not None
    fit = sequences(known_model("Llama-2-13b"), GPUS["H200"], engine.max_model_len)
    assert engine.max_num_seqs <= fit


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


def test_the_launchers_file_is_one_by_rays_schema() -> None:
    import ray.autoscaler

    file = Path(ray.autoscaler.__file__).with_name("ray-schema.json")
    document = yaml.safe_load((DEPLOY / "cluster.yaml").read_text())
    validator = jsonschema.Draft202012Validator(json.loads(file.read_text()))
    assert mistakes(validator, document) == []
    assert mistakes(validator, document | {"worker_nodes": {}}) != []
    types = document["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0, "GPU": 0}
    assert document["head_node_type"] in types
    [start] = [c for c in document["head_start_ray_commands"] if "--head" in c]
    assert "--num-cpus=0" in start and "--dashboard-host=127.0.0.1" in start
    assert "--env RAY_AUTH_MODE=token" in document["docker"]["run_options"]


def dockerfile() -> str:
    return (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")


def test_the_image_is_pinned_offline_and_nobodys() -> None:
    lines = [line for line in dockerfile().splitlines() if line and not line.startswith("#")]
    froms = [i for i, line in enumerate(lines) if line.startswith("FROM ")]
    assert len(froms) == 2
    build, last = lines[froms[0] : froms[1]], lines[froms[1] :]
    assert lines[0].startswith("ARG CUDA_IMAGE=nvidia/cuda:")
    installs = [line for line in lines if "pip install" in line]
    assert all("--constraint constraints.txt" in i or "--no-deps" in i for i in installs)
    assert not [line for line in last if "pip " in line]
    environment = next(line for line in last if line.startswith("ENV "))
    for name in ("HF_HUB_OFFLINE=1", "TRANSFORMERS_OFFLINE=1", "RAY_AUTH_MODE=token"):
        assert name in environment
    user = [i for i, line in enumerate(last) if line.startswith("USER ")]
    assert last[user[-1]] == "USER 1000:1000"
    assert not [line for line in last[user[-1] :] if line.startswith(("RUN", "COPY", "ADD"))]
    kept = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert kept[0] == "*"
    copied = {w for line in build if line.startswith("COPY ") for w in line.split()[1:-1]}
    assert all((ROOT / name).exists() and f"!{name}" in kept for name in copied)
    assert {"admg", "pipeline", "jobs", "constraints.txt"} <= copied


def test_the_wheel_holds_what_is_no_python() -> None:
    """A file beside the code is in the image only if its package says so."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    data = project["tool"]["setuptools"]["package-data"]
    told = {
        file
        for package, patterns in data.items()
        for pattern in patterns
        for file in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    command = ["git", "ls-files", "-z", "admg", "pipeline", "jobs"]
    tracked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in tracked.stdout.split("\0") if name]
    assert [f for f in files if f.suffix != ".py" and f not in told] == []


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
