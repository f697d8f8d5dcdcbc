"""Secrets stay where they are, and text from models and rows steers nothing."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result

from jobs.console import json_text, printable
from jobs.failures import shown
from jobs.submit import Package
from pipeline.config import RunConfig
from pipeline.file_systems import resolve
from pipeline.fingerprint import Fingerprint
from pipeline.manifest import RUN, write_run
from pipeline.redaction import has_credentials, redacted, redacted_values
from pipeline.storage import Store
from tests.pipeline.s3 import BUCKET, S3Server, environment, free_port, s3_server

COMMAND = str(Path(sys.executable).with_name("admg-batch"))
IN_ENVIRONMENT = {
    "AWS_SECRET_ACCESS_KEY": "planted-aws-secret",
    "RAY_AUTH_TOKEN": "planted0ray0token0" * 2,
    "HF_TOKEN": "planted-hub-token",
}
IN_URI = "planted-in-uri"
PLACE = f"s3://key:{IN_URI}@{BUCKET}"
EVIL = "\x1b]0;title\x07\x9b31m\u202egnp.exe\x1b[2J"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://key:secret@bucket/a@b.parquet", "s3://***@bucket/a@b.parquet"),
        ("output 's3://key:secret@bucket' is", "output 's3://***@bucket' is"),
        ("gs://anonymous@bucket/x", "gs://***@bucket/x"),
        ("hf://organisation/name@main", "hf://organisation/name@main"),
        ("s3://b/x?region=eu&sas_token=abc&x=1", "s3://b/x?region=eu&sas_token=***&x=1"),
        ("https://h/x?X-Amz-Signature=abc#y", "https://h/x?X-Amz-Signature=***#y"),
        ("s3://AK:a/b+c/=@bucket/x", "s3://***@bucket/x"),
        ("s3://AK:1/b@bucket/x", "s3://***@bucket/x"),
        ("s3://key:p@ss@bucket/x@y", "s3://***@bucket/x@y"),
        ("http://host:8265/jobs/x@y", "http://host:8265/jobs/x@y"),
        ("abfs://c@h/x?a=b&AccountKey=z/z==", "abfs://***@h/x?a=b&AccountKey=***"),
        ("mail a@b.c, key:word@home", "mail a@b.c, key:word@home"),
    ],
)
def test_credentials_in_uris_are_hidden_and_nothing_else(text: str, expected: str) -> None:
    assert redacted(text) == expected
    assert has_credentials(text) == (text != expected)
    assert redacted_values({"a": [text, (text,)], "b": 1}) == {"a": [expected, [expected]], "b": 1}


def test_what_steers_a_terminal_is_not_shown() -> None:
    row = f"ok {EVIL}\n\tend"
    for text in (printable(row), shown(row)):
        assert text.startswith("ok ") and text.endswith("\n\tend")
        assert not set(text) & set("\x1b\x07\x9b\u202e")
    assert json.loads(json_text({"completion": row})) == {"completion": row}
    assert not set(json_text({"completion": row})) & set("\x1b\x07\x9b\u202e")


@pytest.mark.parametrize("path", ["a b", "$(touch x)", "'; touch x; '", "`touch x`", "a\nb", "--x"])
def test_a_jobs_entry_point_gives_a_shell_nothing_to_do(path: str, tmp_path: Path) -> None:
    """Ray runs it through a shell: each word must arrive as it was, and alone."""
    package = Package(tmp_path, ["run", "--config", path])
    show = shlex.join([sys.executable, "-c", "import sys; print(repr(sys.argv[1:]))"])
    command = package.entrypoint.replace("admg-batch", show, 1)
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == repr(["run", "--config", path])
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (environment(port) | IN_ENVIRONMENT).items():
            patch.setenv(name, value)
        with s3_server(port) as server:
            yield server


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    "words",
    [
        ["report", f"{PLACE}/nothing"],
        ["report", f"{PLACE}/nothing", "-v"],
        ["run", "--input", "x", "--output", "y", "--model", f"{PLACE}/none"],
        ["run", "--input", f"{PLACE}/none", "--output", f"{PLACE}/out", "--model", "demo", "-v"],
        ["submit", "--input", "/x", "--output", f"{PLACE}/out", "--model", "/m"],
        ["stop", f"{PLACE}/nothing"],
        ["status", f"{PLACE}/nothing", "--json"],
    ],
)
def test_messages_hide_credentials(admg_batch: Callable[..., Result], words: list[str]) -> None:
    result = admg_batch(*words)
    assert result.exit_code in (0, 2), result.output
    assert IN_URI not in result.output and result.output


def test_records_hide_credentials(tmp_path: Path) -> None:
    """What a run leaves beside its results, with all else as it was."""
    config = RunConfig((f"{PLACE}/in",), f"{PLACE}/out", f"{PLACE}/model", keep=("a://b@c",))
    store = Store(str(tmp_path / "out"))
    store.prepare()
    write_run(store, config, Fingerprint({}), "now", order=False)
    told = store.read(RUN).decode()
    assert IN_URI not in told and f"s3://***@{BUCKET}/in" in told
    assert json.loads(told)["config"]["keep"] == ["a://b@c"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_planted_secrets_are_found_nowhere(
    server: S3Server, tiny: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A real run with secrets in its environment and in its URIs, and every command that reads.

    A minute and a half on busy cores: pytest -m slow tests/jobs/test_security.py
    """
    rows = {"id": ["a", f"b{EVIL}"], "prompt": ["The sea", f"The {EVIL} sky"]}
    filesystem, root = resolve(f"{PLACE}/planted")
    pq.write_table(pa.table(rows), f"{root}/in/part-0.parquet", filesystem=filesystem)
    for file in tiny.iterdir():
        with filesystem.open_output_stream(f"{root}/model/{file.name}") as stream:
            stream.write(file.read_bytes())
    logs = tmp_path_factory.mktemp("ray")
    env = os.environ | {"RAY_TMPDIR": str(logs), "ADMG_BATCH_CACHE": str(tmp_path / "cache")}
    output = f"{PLACE}/planted/out"
    said = b""

    def admg_batch(*words: str) -> int:
        nonlocal said
        done = subprocess.run([COMMAND, *words], env=env, capture_output=True, timeout=110)
        said += done.stdout + done.stderr
        return done.returncode

    base = ["run", "--input", f"{PLACE}/planted/in", "--output", output]
    base += ["--model", f"{PLACE}/planted/model", "--dtype", "float32"]
    assert admg_batch(*base, "--max-tokens", "8", "--kv-budget", "4MiB") == 0, said
    for words in (
        ["report", output],
        ["report", output, "--json"],
        ["report", output, "--html", str(tmp_path / "report.html")],
        ["status", output],
        ["status", output, "--json"],
        ["stop", output],
    ):
        assert admg_batch(*words) == 0, said
    # Mistakes, with and without a traceback.
    assert admg_batch(*base, "--max-tokens", "9") == 2
    assert admg_batch(*base, "--max-tokens", "9", "-v") == 2
    assert admg_batch("report", f"{PLACE}/nothing") == 2
    assert admg_batch("run", "--input", "x", "--output", "y", "--model", f"{PLACE}/none") == 2
    objects = server.objects("planted/out")
    assert "_SUCCESS" in objects
    assert b"s3://***@bucket/planted/in" in objects["_admg/manifest.json"]
    written = {str(f): f.read_bytes() for f in logs.rglob("*") if f.is_file()}
    assert any("session" in name for name in written)
    written |= {str(f): f.read_bytes() for f in (tmp_path / "cache").rglob("*") if f.is_file()}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "***" in page and EVIL not in page
    written["page"] = page.encode()
    for secret in (IN_URI, *IN_ENVIRONMENT.values()):
        places = objects | written | {"terminal": said}
        found = [name for name, text in places.items() if secret.encode() in text or secret in name]
        assert found == [], f"{secret} in {found}"
    assert not any(mark in said for mark in (b"\x1b]0", b"\x07", b"\x1b[2J", "\x9b".encode()))
