"""The shape of the repository: sizes of files and functions, and the top level."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("admg", "pipeline", "jobs")
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
TOP_LEVEL = {
    *("pyproject.toml", "pipeline", "admg", "jobs", "tests", "deploy", "README.md"),
    *(".ci", "Makefile", "LICENSE", ".gitignore", ".pre-commit-config.yaml", "constraints.txt"),
}


def sources() -> list[Path]:
    return sorted(f for package in PACKAGES for f in (ROOT / package).rglob("*.py"))


def long_functions(source: str) -> list[str]:
    """Names and lengths of the functions that are longer than allowed."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = (n for n in ast.walk(ast.parse(source)) if isinstance(n, kinds))
    lengths = ((f.name, (f.end_lineno or f.lineno) - f.lineno + 1) for f in found)
    return [f"{name}: {lines} lines" for name, lines in lengths if lines > MAX_FUNCTION_LINES]


def test_there_are_sources() -> None:
    assert {f.relative_to(ROOT).parts[0] for f in sources()} == set(PACKAGES)


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MAX_FILE_LINES
    assert long_functions(source) == []


def test_long_functions_are_found() -> None:
    body = "    x = 1\n" * MAX_FUNCTION_LINES
    assert long_functions(f"def short():\n{body[:-10]}") == []
    assert long_functions(f"class A:\n  async def f(self):\n{body}")[0].startswith("f: 61")


def test_the_top_level_is_the_fixed_list() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if tracked.returncode:
        pytest.skip("not a git checkout")
    names = {name.partition("/")[0] for name in tracked.stdout.split("\0") if name}
    assert names <= TOP_LEVEL
    assert {"Makefile", "LICENSE", "pyproject.toml"} <= names


def test_deploy_holds_no_python() -> None:
    assert not list((ROOT / "deploy").rglob("*.py"))
