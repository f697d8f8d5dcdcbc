"""Programs that mean harm, or only go wrong, and what is left of the machine afterwards.

The isolation `namespaces` is tested wherever the kernel allows it; `limits` needs an interpreter
that an unprivileged user may read, which root's own is not. What is skipped says why.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

import pytest

from jobs.evaluation import sandbox
from jobs.evaluation.code_tests import run_tests
from jobs.evaluation.local_data import load_task
from jobs.evaluation.sandbox import Isolation, Limits, Outcome, SandboxUnavailable, run_program
from jobs.evaluation.tasks import Example
from tests.conftest import SHARED_DATA

SHORT = Limits(seconds=0.5, memory=128 * 2**20)
LONG = Limits(seconds=30, memory=128 * 2**20)
ADD = Example("add", 'def add(a, b):\n    """Add."""\n', "    return a + b\n", entry_point="add")


@pytest.fixture(params=get_args(Isolation), scope="module")
def isolation(request: pytest.FixtureRequest) -> Isolation:
    """Each of the isolations that this machine allows."""
    try:
        sandbox.check_isolation(request.param)
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    found: Isolation = request.param
    return found


def ended(source: str, isolation: Isolation, limits: Limits = LONG) -> str:
    outcome = run_program(source, isolation, limits)
    return f"{outcome.status} {outcome.error}".strip()


def test_a_program_that_runs_to_its_end_passes(isolation: Isolation) -> None:
    source = "import math, re, heapq, collections, typing, hashlib\nassert math.isqrt(9) == 3"
    assert ended(source, isolation) == "passed"
    assert ended("assert 1 == 2, 'no'", isolation) == "failed AssertionError: no"
    assert ended("def", isolation).startswith("failed SyntaxError")


@pytest.mark.parametrize(
    ("source", "end"),
    [
        ("import time\ntime.sleep(99)", "timed out"),
        ("while True: print('x' * 10**6)", "timed out"),
        ("import os\nwhile True: os.write(3, b'x' * 65536)", "timed out"),
        ("x = 'x' * 10**10", "memory"),
        ("x = []\nwhile True: x.append(bytearray(10**6))", "memory"),
        ("import os\nwhile True: os.fork()", "failed"),
        ("import threading\nthreading.Thread(target=print).start()", "failed RuntimeError"),
        ("import subprocess\nsubprocess.run(['/bin/true'])", "failed"),
        ("import sys\nsys.exit(0)", "failed SystemExit"),
        ("import os\nos._exit(0)", "failed ended before its tests"),
        ("import os\nos._exit(1)", "failed ended before its tests"),
        ("raise Exception('\\ud800' + 'x' * 9999)", "failed Exception: ?xxx"),
        ("def f(): f()\nf()", "failed RecursionError"),
        ("import os\nos.kill(os.getppid(), 9)\nos.kill(-1, 9)", "failed"),
    ],
)
def test_hostile_programs_end(source: str, end: str, isolation: Isolation) -> None:
    limits = SHORT if end == "timed out" else LONG
    assert ended(source, isolation, limits).startswith(end)


def test_a_forged_word_is_no_pass(isolation: Isolation) -> None:
    said = json.dumps({"word": "x", "status": "passed", "error": ""})
    source = f"import os\nos.write(3, {said.encode()!r})\nos._exit(0)"
    assert ended(source, isolation) == "failed ended before its tests"


def test_nothing_is_written_outside(isolation: Isolation, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    mine = tmp_path / "mine.txt"
    mine.write_text("kept")
    mine.chmod(0o666)
    tries = "\n".join(
        f"try: {attempt}\nexcept OSError: pass"
        for attempt in (
            f"open({str(mine)!r}, 'w').write('gone')",
            f"os.remove({str(mine)!r})",
            f"os.truncate({str(mine)!r}, 0)",
            f"open({str(tmp_path / 'new.txt')!r}, 'w').write('new')",
            "open('/tmp/admg-batch-hostile', 'w').write('new')",
        )
    )
    assert ended(f"import os\n{tries}", isolation) == "passed"
    assert mine.read_text() == "kept"
    assert [f.name for f in tmp_path.iterdir()] == ["mine.txt"]
    assert not Path("/tmp/admg-batch-hostile").exists()


@pytest.mark.parametrize(
    "attempt",
    [
        "import sqlite3; sqlite3.connect({0!r}).execute('create table t (x)')",
        "import _sqlite3; _sqlite3.connect({0!r}).execute('create table t (x)')",
        "import dbm; dbm.open({0!r}, 'n')['a'] = 'b'",
        "import _dbm; _dbm.open({0!r}, 'n')['a'] = 'b'",
        "import _gdbm; _gdbm.open({0!r}, 'n')['a'] = 'b'",
        "import readline; readline.write_history_file({0!r})",
        "import os; os.mkfifo({0!r})",
        "import os; os.mknod({0!r})",
        "import posix; posix.mkfifo({0!r})",
    ],
)
def test_the_hook_refuses_files_that_are_opened_in_c(attempt: str, tmp_path: Path) -> None:
    source = attempt.format(str(tmp_path / "new"))
    shell = ["sh", "-c", 'exec "$0" -I -S "$1" 3>&1', sys.executable]
    script = str(Path(sandbox.__file__).with_name("inside.py"))
    order = json.dumps(["w", True, source])
    done = subprocess.run([*shell, script], input=order, capture_output=True, text=True)
    assert json.loads(done.stdout)["status"] == "failed"
    assert not list(tmp_path.iterdir())


def test_files_of_its_own_are_few_and_small() -> None:
    skip_without("namespaces")
    assert ended("open('x', 'w').write('x'); assert open('x').read()", "namespaces") == "passed"
    large = "open('x', 'wb').write(bytes(2 * 2**20))\nopen('x', 'ab').write(b'x')"
    assert "File too large" in ended(large, "namespaces")
    many = "for i in range(99): open(f'x{i}', 'wb').write(bytes(10**6))"
    assert "No space left" in ended(many, "namespaces")


def test_it_sees_no_environment_and_no_data(
    isolation: Isolation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_TOKEN", "hidden")
    source = "import os\nassert 'hidden' not in os.environ.values(), os.environ"
    assert ended(source, isolation) == "passed"
    source = "import os\nassert os.getuid() != 0 and not os.path.exists('/root/.ssh')"
    assert ended(source, isolation) == "passed"


def test_files_of_the_machine_are_not_there() -> None:
    skip_without("namespaces")
    here = Path(__file__).resolve()
    source = f"import os\nassert not os.path.exists({str(here)!r})\nassert os.getpid() == 1"
    assert ended(source, "namespaces") == "passed"


def test_there_is_no_network(isolation: Isolation) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        source = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)"
        assert ended(source, isolation).startswith("failed ")


def test_descriptors_of_the_parent_are_closed(isolation: Isolation) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    try:
        source = (
            "import os\nfor fd in range(4, 400):\n"
            "    try: os.write(fd, b'x')\n    except OSError: continue\n    raise Exception(fd)"
        )
        assert ended(source, isolation) == "passed"
    finally:
        os.close(reading)
        os.close(writing)


def test_who_ends_the_launcher_ends_the_program(isolation: Isolation) -> None:
    with tempfile.TemporaryDirectory() as root:
        order: dict[str, object] = {"source": "while True: pass", "word": "w", "root": root}
        order |= {"isolation": isolation, "seconds": 60, "memory": 2**29, "file_size": 2**20}
        command = [sys.executable, "-I", "-S", str(sandbox._LAUNCHER)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as launcher:
            assert launcher.stdin is not None
            launcher.stdin.write(json.dumps(order))
            launcher.stdin.close()
            children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
            program = _wait_for(lambda: _burning(children.read_text()))
            launcher.send_signal(signal.SIGKILL)
            launcher.wait(10)
        _wait_for(lambda: not Path(f"/proc/{program}").exists())


def _burning(children: str) -> int:
    """The child that has used some CPU time, which it only does when it is all set up."""
    for child in children.split():
        try:
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            continue
        if int(fields[11]) > 20:
            return int(child)
    return 0


def _wait_for(condition: object) -> int:
    assert callable(condition)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if found := condition():
            return int(found)
        time.sleep(0.02)
    raise AssertionError("it does not come to pass")


def test_what_the_machine_does_not_allow_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    said = json.dumps({"status": "unavailable", "error": "unshare: Operation not permitted"})
    monkeypatch.setattr(sandbox, "_launched", lambda *_: said)
    with pytest.raises(SandboxUnavailable, match="'namespaces': unshare: Operation not permitted"):
        sandbox.check_isolation("namespaces")


def test_no_folder_is_left_behind(isolation: Isolation, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        run_program("import os; os.mkdir('x') if os.getcwd() == '/tmp' else None", isolation)
        assert not os.listdir(folder)


def test_answers_are_run_with_their_tests(isolation: Isolation) -> None:
    test = "def check(candidate):\n    assert candidate(2, 3) == 5\n"
    example = Example(ADD.id, ADD.text, ADD.reference, test, "add")
    answers = [
        "    return a + b\n",
        "    return a - b\n",
        "from operator import add as plus\n\ndef add(a, b):\n    return plus(a, b)",
        "    return a + b\n",
    ]
    outcomes = run_tests([example] * 4, answers, isolation, LONG)
    assert [o.status for o in outcomes] == ["passed", "failed", "passed", "passed"]
    assert outcomes[1] == Outcome("failed", "AssertionError: ")


def test_after_an_error_no_further_program_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def run(source: str, *_: object) -> Outcome:
        started.append(source)
        raise SandboxUnavailable("gone")

    monkeypatch.setattr("jobs.evaluation.code_tests.run_program", run)
    example = Example("1", "def f(): pass\n", "", "def check(f): pass\n", "f")
    with pytest.raises(SandboxUnavailable):
        run_tests([example] * 50, [f"# {i}" for i in range(50)], "limits", workers=1)
    assert len(started) < 10


@pytest.mark.slow
def test_all_solutions_of_the_real_data_pass(isolation: Isolation) -> None:
    """`pytest -m slow tests/jobs/test_sandbox.py`: 20 s, HumanEval's own solutions."""
    if not (SHARED_DATA / "HumanEval.jsonl").is_file():
        pytest.skip("needs HumanEval at ../shared/data/HumanEval.jsonl")
    examples = load_task("humaneval", SHARED_DATA).examples
    assert len(examples) == 164
    outcomes = run_tests(examples, [e.reference for e in examples], isolation)
    assert {o.status for o in outcomes} == {"passed"}


def skip_without(isolation: Isolation) -> None:
    try:
        sandbox.check_isolation(isolation)
    except SandboxUnavailable as error:
        pytest.skip(str(error))
