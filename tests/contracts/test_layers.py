"""Each package, imported alone in a clean process, brings in nothing that it must not know."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "admg": {"ray", "pyarrow", "datasets", "click", "pydantic", "rich", "pipeline", "jobs"},
    "pipeline": {"click", "rich", "jobs"},
}
_PROBE = """
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
print(" ".join(sorted({{m.partition(".")[0] for m in sys.modules}})))
"""


def loaded_by(*modules: str) -> set[str]:
    """Top-level names in `sys.modules` after importing these in a new interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", _PROBE.format(modules=modules)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def modules_of(package: str) -> list[str]:
    folder = ROOT / package
    return [package] + [m.name for m in pkgutil.walk_packages([str(folder)], prefix=f"{package}.")]


# Ray and transformers bring click and rich with them: what counts there is what our own source
# says, and import-linter sees to that.
_BROUGHT_BY_OTHERS = {"pipeline": {"click", "rich"}, "admg": {"click", "rich", "pydantic"}}


@pytest.mark.parametrize("package", ["admg", "pipeline"])
def test_a_package_imports_nothing_above_it(package: str) -> None:
    loaded = loaded_by(*modules_of(package))
    forbidden = FORBIDDEN[package] - _BROUGHT_BY_OTHERS[package]
    assert not loaded & forbidden
    assert package in loaded


def test_configuration_is_light() -> None:
    """Command lines import it for their help."""
    heavy = {"torch", "transformers", "ray", "pyarrow", "datasets", "numpy"}
    assert not loaded_by("admg.config", "pipeline.config") & heavy


def test_the_command_line_imports_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "ray", "pyarrow", "datasets", "numpy", "pydantic", "rich"}
    assert not loaded_by("jobs.cli") & heavy


def test_the_probe_sees_what_it_should() -> None:
    """The tests above would pass for ever with a probe that sees nothing."""
    assert {"pyarrow", "numpy"} <= loaded_by("pyarrow")
