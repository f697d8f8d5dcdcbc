"""Starting and steering the S3 server of `s3_server.py`, which runs in a process of its own."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

BUCKET = "bucket"
_START_SECONDS = 60


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(port: int) -> dict[str, str]:
    """The usual variables that lead to a server on this port."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        # Else clients look for credentials on the network when something is missing here.
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@dataclass(frozen=True)
class S3Server:
    """A running server with one bucket."""

    port: int

    def refuse(self, pattern: str, times: int) -> None:
        """Answer the next `times` requests "METHOD path" that match with 503 SlowDown."""
        self._ask(json.dumps({"pattern": pattern, "times": times}).encode())

    def forgive(self) -> None:
        """Refuse nothing more."""
        self.refuse("$^", 0)

    def refused(self) -> list[str]:
        """What was refused since `refuse` or `forgive`."""
        return list(json.loads(self._ask()))

    def _ask(self, body: bytes | None = None) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/_gate", body) as answer:
            return bytes(answer.read())

    def objects(self, prefix: str) -> dict[str, bytes]:
        """The bucket's objects below a prefix, by their names there."""
        system, root = fs.FileSystem.from_uri(f"s3://{BUCKET}/{prefix}")
        found = system.get_file_info(fs.FileSelector(root, recursive=True))
        paths = [f.path for f in found if f.is_file]
        return {p[len(root) + 1 :]: system.open_input_file(p).readall() for p in paths}


@contextlib.contextmanager
def s3_server(port: int) -> Iterator[S3Server]:
    """Start a server and make its bucket."""
    command = [sys.executable, str(Path(__file__).with_name("s3_server.py")), str(port)]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    server = S3Server(port)
    try:
        end = time.monotonic() + _START_SECONDS
        while not _answers(port):
            assert process.poll() is None, "the S3 server ended"
            assert time.monotonic() < end, "the S3 server does not answer"
            time.sleep(0.05)
        bucket = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")
        with urllib.request.urlopen(bucket):
            yield server
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
