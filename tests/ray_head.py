"""A Ray cluster of a test's own: a head as people start it, with Jobs API and a token."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests

BIN = Path(sys.executable).parent
_START_SECONDS = 90


@dataclass(frozen=True)
class Head:
    """A running head: its URL, its token, an environment that knows both, and Ray's own folder."""

    address: str
    token: str
    folder: Path
    env: dict[str, str]

    def admg_batch(self, *args: object, **options: object) -> subprocess.CompletedProcess[str]:
        """Run the command against this cluster."""
        return subprocess.run(  # type: ignore[call-overload, no-any-return]
            [str(BIN / "admg-batch"), *map(str, args)],
            **{"env": self.env, "capture_output": True, "text": True, "timeout": 300} | options,
        )


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at this moment."""
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in taken]


@contextmanager
def ray_head(cpus: int = 6) -> Iterator[Head]:
    """Start a head, wait until it answers, and end it with all that it has started."""
    folder = Path(tempfile.mkdtemp(prefix="head", dir="/tmp"))  # Ray's sockets want short paths
    port, dashboard, agent, client = free_ports(4)
    token = secrets.token_hex(32)
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env |= {"PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    command = [str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats"]
    command += ["--node-ip-address=127.0.0.1", f"--port={port}", f"--num-cpus={cpus}"]
    command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    command += [f"--ray-client-server-port={client}", "--min-worker-port=0", "--max-worker-port=0"]
    command += [f"--temp-dir={folder}", "--object-store-memory=100000000", "--num-gpus=0"]
    address = f"http://127.0.0.1:{dashboard}"
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(
            command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _wait(head, address, token, folder / "head.log")
            yield Head(address, token, folder, env | {"RAY_API_SERVER_ADDRESS": address})
        finally:
            # `ray start --block` takes no SIGTERM; raylet and the others of its group do.
            os.killpg(head.pid, signal.SIGTERM)
            try:
                head.wait(timeout=2)
            except subprocess.TimeoutExpired:
                os.killpg(head.pid, signal.SIGKILL)
                head.wait()
            shutil.rmtree(folder, ignore_errors=True)


def _wait(head: subprocess.Popen[bytes], address: str, token: str, log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        assert head.poll() is None, log.read_text()
        try:
            headers = {"authorization": f"Bearer {token}"}
            if requests.get(f"{address}/api/version", headers=headers, timeout=5).ok:
                return
        except requests.RequestException:
            time.sleep(0.2)
    raise AssertionError(log.read_text())
