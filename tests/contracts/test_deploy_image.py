"""The image, and the cluster of virtual machines that runs it."""

from __future__ import annotations

import json
import subprocess
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

from tests.contracts.deployment import (
    DEPLOY,
    ROOT,
    dockerfile,
    mistakes,
)


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
