"""What is sent to a cluster: a folder with the resolved job file, and code where that is asked for.

Options, job file and template are read and checked here. What arrives is one TOML file, and the
template beside it, which say the same without this machine: paths are absolute, and nothing in
them depends on a shell.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from importlib import metadata, util
from pathlib import Path
from typing import Any

import tomli_w

from jobs.job_file import JobFile, read_job_file
from jobs.params import run_config
from jobs.plan_file import is_file
from jobs.resolved import resolved_job
from jobs.submission import parse_logical_date
from pipeline.config import RunConfig
from pipeline.home import local_path
from pipeline.redaction import has_credentials

JOB_FILE = "job.toml"
TEMPLATE_FILE = "template.txt"
PLAN_FILE = "plan.toml"
_DIGEST_CHARS = 12
_PACKAGES = ("admg", "pipeline", "jobs")
_CODE = re.compile(rf"(?:{'|'.join(_PACKAGES)}|admg_batch-[\w.+]+\.dist-info)/")
_PATHS = ("input", "output", "model")


@dataclass(frozen=True, slots=True)
class Shipment:
    """What a folder's command does: where its results go, for which date, and a digest of it all.

    The digest covers a whole configuration, templates included, and is the same on every machine.
    Unlike that of an output (`pipeline.fingerprint`) it covers options that only change speed, and
    the model by its path: the model's files may be out of reach from here.
    """

    command: tuple[str, ...]
    output: str
    logical_date: str
    fingerprint: str


def ship_run(
    folder: Path, flags: Mapping[str, Any], config: str | None, day: str | None
) -> Shipment:
    """Put a run's job file, its template and its plan file into an empty folder.

    Args:
        folder: where to.
        flags: values by option name; None where the option was not given.
        config: the job file, if there is one.
        day: the date that the run is for; None is today.

    Raises:
        ValueError: a user's mistake, in one sentence.
    """
    job = JobFile() if config is None else read_job_file(config)
    settings = run_config(flags, job, config)
    _refuse_credentials(settings)
    plan = flags.get("plan") or job.draft.plan
    values = resolved_job(settings, None, plan)
    if "plan" in values["draft"]:
        values["draft"]["plan"] = _ship_plan(folder, values["draft"]["plan"])
    if settings.prompt.template is not None:
        (folder / TEMPLATE_FILE).write_text(settings.prompt.template, encoding="utf-8")
        values["prompt"]["template"] = TEMPLATE_FILE
    path = _write(folder, values)
    arrives = run_config({}, read_job_file(path), path)
    if replace(settings, **{name: getattr(arrives, name) for name in _PATHS}) != arrives:
        raise AssertionError(f"the job file that would be sent says something else:\n{arrives}")
    day = day or date.today().isoformat()
    return Shipment(("run", "--config", JOB_FILE), arrives.output, day, digest_of(asdict(arrives)))


def ship_nightly(
    folder: Path, flags: Mapping[str, Any], config: str | None, day: str | None
) -> Shipment:
    """Put a nightly job file into an empty folder, for one date.

    Args:
        folder: where to.
        flags: values by option name; of these, a night has its places alone.
        config: the nightly job file.
        day: the day whose documents are summarised; None is the last that has ended.

    Raises:
        ValueError: a user's mistake, in one sentence.
    """
    from jobs.nightly.dates import folder_of, logical_date
    from jobs.nightly.file import read_nightly_file, time_zone

    if config is None:
        raise ValueError("--nightly needs --config, the nightly job file")
    for name in (name for name, value in flags.items() if value is not None):
        if name not in _PATHS:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} cannot go with --nightly: its place is the job file")
    file = read_nightly_file(config)
    given = {name: flags[name] for name in _PATHS if flags.get(name) is not None}
    settings = run_config(given, file.job(), config)
    _refuse_credentials(settings)
    if len(settings.input) != 1:
        raise ValueError("--input is given more than once: a night has one folder of all dates")
    places = {name: value for name, value in resolved_job(settings, None).items() if name in _PATHS}
    places["input"] = places["input"][0]
    if file.draft.plan is not None:
        name = _ship_plan(folder, file.draft.plan)
        places["draft"] = file.draft.model_copy(update={"plan": name})
    shipped = file.model_copy(update=places)
    values = shipped.model_dump(exclude_none=True)
    arrives = read_nightly_file(_write(folder, values))
    if arrives.model_copy(update={"draft": shipped.draft}) != shipped:
        raise AssertionError(f"the job file that would be sent says something else:\n{values}")
    zone, back = time_zone(file.nightly.time_zone), file.nightly.days_back
    chosen = logical_date(datetime.now(UTC), zone, back) if day is None else parse_logical_date(day)
    command = ("nightly", "--config", JOB_FILE, "--date", chosen.isoformat())
    output = f"{places['output'].rstrip('/')}/{folder_of(chosen)}"
    return Shipment(command, output, chosen.isoformat(), digest_of(values))


def digest_of(values: Mapping[str, Any]) -> str:
    """A short digest of a configuration."""
    text = json.dumps(values, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()[:_DIGEST_CHARS]


def _ship_plan(folder: Path, plan: str) -> str:
    """The name that a plan has in the folder, where its file is put if it is one."""
    if not is_file(plan):
        return plan
    shutil.copyfile(local_path(plan), folder / PLAN_FILE)
    return PLAN_FILE


def _write(folder: Path, values: Mapping[str, Any]) -> str:
    path = folder / JOB_FILE
    path.write_text(tomli_w.dumps(values), encoding="utf-8")
    return str(path)


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
                    "cluster's jobs would see: leave them out, and give them to the nodes"
                )
