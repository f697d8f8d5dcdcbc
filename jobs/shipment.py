"""What is sent to a cluster: a folder with the resolved job file, and code where that is asked for.

Options, job file and template are read and checked here. What arrives is one TOML file, and the
template beside it, which say the same without this machine: paths are absolute, and nothing in
them depends on a shell.
"""

from __future__ import annotations

import re
import shutil
import zipfile
from dataclasses import replace
from importlib import metadata, util
from pathlib import Path

import tomli_w

from jobs.job_file import read_job_file
from jobs.params import run_config
from jobs.resolved import resolved_job
from pipeline.config import RunConfig
from pipeline.redaction import has_credentials

JOB_FILE = "job.toml"
TEMPLATE_FILE = "template.txt"
_PACKAGES = ("admg", "pipeline", "jobs")
_CODE = re.compile(rf"(?:{'|'.join(_PACKAGES)}|admg_batch-[\w.+]+\.dist-info)/")
_PATHS = ("input", "output", "model")


def pack_job(folder: Path, settings: RunConfig) -> RunConfig:
    """Write the job file, and the template, that say what these settings say.

    Args:
        folder: an empty folder.
        settings: the configuration, checked.

    Returns:
        The configuration that the cluster will read there.

    Raises:
        ValueError: a URI with credentials, which may not be sent.
    """
    _refuse_credentials(settings)
    job = resolved_job(settings, None)
    if settings.prompt.template is not None:
        (folder / TEMPLATE_FILE).write_text(settings.prompt.template, encoding="utf-8")
        job["prompt"]["template"] = TEMPLATE_FILE
    path = folder / JOB_FILE
    path.write_text(tomli_w.dumps(job), encoding="utf-8")
    arrives = run_config({}, read_job_file(str(path)), str(path))
    if replace(settings, **{name: getattr(arrives, name) for name in _PATHS}) != arrives:
        raise AssertionError(f"the job file that would be sent says something else:\n{arrives}")
    return arrives


def add_wheel(folder: Path, wheel: str) -> None:
    """Put a wheel's code into the folder, without installing it: its requirements are there.

    Ray itself would install the wheel with all that it requires, torch included, for every job.

    Raises:
        ValueError: it is no wheel of this project.
    """
    right = "the file of an admg-batch wheel"
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if _CODE.match(n)]
            if not {"admg/__init__.py", "pipeline/__init__.py", "jobs/__main__.py"} <= set(names):
                raise ValueError(f"--wheel is {wheel!r}: it must be {right}")
            archive.extractall(folder, names)
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"--wheel is {wheel!r}: it must be {right}: {error}") from error


def add_installed(folder: Path) -> None:
    """Put the code that runs here into the folder, with a note of its version."""
    for package in _PACKAGES:
        found = util.find_spec(package)
        assert found is not None and found.submodule_search_locations
        source = Path(found.submodule_search_locations[0])
        shutil.copytree(source, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    version = metadata.version("admg-batch")
    note = folder / f"admg_batch-{version}.dist-info"
    note.mkdir()
    text = f"Metadata-Version: 2.1\nName: admg-batch\nVersion: {version}\n"
    (note / "METADATA").write_text(text, encoding="utf-8")


def _refuse_credentials(settings: RunConfig) -> None:
    for name in _PATHS:
        given = getattr(settings, name)
        for text in (given,) if isinstance(given, str) else given:
            if has_credentials(text):
                raise ValueError(
                    f"--{name} is a URI with credentials, which everybody who may look at the "
                    "cluster's jobs would see: leave them out, and give them to the nodes, or "
                    "send environment variables with --env NAME"
                )
