"""An S3 server that can be told to refuse requests: moto behind a gate. Run: s3_server.py PORT.

POST /_gate takes {"pattern": regex of "METHOD path", "times": n}: the next n requests that match
are answered 503 SlowDown. GET /_gate gives the requests that were refused since then.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
Start = Callable[..., Any]


class Gate:
    """A WSGI application before another one."""

    def __init__(self, behind: Any) -> None:
        self._behind = behind
        self._lock = threading.Lock()
        self._pattern, self._times = re.compile("$^"), 0
        self._refused: list[str] = []

    def __call__(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if path == "/_gate":
            return self._control(method, environ, start)
        if self._refuses(f"{method} {path}"):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            length = ("Content-Length", str(len(_SLOW_DOWN)))
            start("503 Slow Down", [("Content-Type", "application/xml"), length])
            return [b"" if method == "HEAD" else _SLOW_DOWN]
        return list(self._behind(environ, start))

    def _control(self, method: str, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        with self._lock:
            if method == "POST":
                told = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
                self._pattern, self._times = re.compile(told["pattern"]), told["times"]
                self._refused = []
            start("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(self._refused).encode()]

    def _refuses(self, request: str) -> bool:
        with self._lock:
            if self._times < 1 or not self._pattern.search(request):
                return False
            self._times -= 1
            self._refused.append(request)
            return True


if __name__ == "__main__":
    moto = DomainDispatcherApplication(create_backend_app)
    run_simple("127.0.0.1", int(sys.argv[1]), Gate(moto), threaded=True)
