"""What the sources never do: run a shell, code out of files, or pickled weights."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.test_house import ROOT, sources

# Calls by the end of their dotted name. Ray moves its own objects about by pickle; none of these
# reads a file or a text that came from outside.
FORBIDDEN = {
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("eval", "exec", "compile_command", "__import__", "runpy.run_path"),
    *("pickle.load", "pickle.loads", "torch.load", "joblib.load", "yaml.load", "marshal.loads"),
    *("numpy.fromregex", "tempfile.mktemp"),
}
# The one place that runs code from outside: a script that only the sandbox's launcher starts.
INSIDE_THE_SANDBOX = ROOT / "jobs" / "evaluation" / "inside.py"
# Arguments that no call may have with this value.
ARGUMENTS = {"shell": True, "trust_remote_code": True, "weights_only": False, "allow_pickle": True}


def name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def unsafe(source: str) -> Iterator[str]:
    """Calls in a source that are not to be there."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = name_of(node.func)
        if name in FORBIDDEN:
            yield f"line {node.lineno}: {name}"
        given = {k.arg: k.value for k in node.keywords if k.arg}
        for argument, value in given.items():
            wrong = ARGUMENTS.get(argument)
            safe = isinstance(value, ast.Constant) and value.value is not wrong
            if wrong is not None and not safe:
                yield f"line {node.lineno}: {argument}"


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_sources_run_nothing_that_comes_from_outside(path: Path) -> None:
    found = list(unsafe(path.read_text(encoding="utf-8")))
    if path == INSIDE_THE_SANDBOX:
        assert [line.rpartition(" ")[2] for line in found] == ["exec"]
    else:
        assert found == []


def test_what_runs_inside_the_sandbox_is_imported_by_nobody() -> None:
    for path in sources():
        assert "evaluation.inside" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize(
    "line",
    [
        "os.system(f'rm {x}')",
        "subprocess.run(x, shell=True)",
        "subprocess.run(x, shell=flag)",
        "eval(x)",
        "torch.load(x)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=config.trust)",
    ],
)
def test_what_is_not_to_be_there_is_found(line: str) -> None:
    assert len(list(unsafe(line))) == 1
