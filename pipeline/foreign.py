"""fsspec's file systems with errors that are all `OSError`s, so that retries can judge them.

Their clients (aiohttp, httpx, botocore, Google's, Azure's) raise exceptions of their own. None of
these libraries is imported here: an error is known by its HTTP status, or else by its classes'
names.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from pyarrow import fs

from pipeline.retry import one_line

_CONNECTION = re.compile(
    r"Connect|Disconnect|Timeout|Transport|IncompleteRead|Payload"
    r"|ServiceRequestError|ServiceResponseError"
)


def told_in_os_errors(filesystem: fs.FileSystem) -> fs.FileSystem:
    """The same file system; of an fsspec one, foreign errors come back as `OSError`s."""
    handler = getattr(filesystem, "handler", None)
    if not isinstance(handler, fs.FSSpecHandler):
        return filesystem
    return fs.PyFileSystem(fs.FSSpecHandler(_Told(handler.fs)))


class _Told:
    """An fsspec file system, or a file of one."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def told(*args: Any, **kwargs: Any) -> Any:
            with os_errors():
                result = found(*args, **kwargs)
            return _Told(result) if name == "open" else result

        return told

    def __eq__(self, other: object) -> bool:
        return bool(self._inner == (other._inner if isinstance(other, _Told) else other))

    def __hash__(self) -> int:
        return hash(self._inner)

    def __enter__(self) -> _Told:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def os_errors() -> Iterator[None]:
    """Exceptions of clients' own kinds leave this as `OSError`s."""
    try:
        yield
    except (OSError, ValueError):  # what a client calls a wrong value is the user's mistake
        raise
    except Exception as error:
        if type(error).__module__ == "builtins":
            raise
        raise _os_error(error) from error


def _os_error(error: Exception) -> OSError:
    said = f"{type(error).__name__}: {one_line(error)}"
    status = _status(error)
    if status in (401, 403):
        return PermissionError(said)
    if status in (404, 410):
        return FileNotFoundError(said)
    if status is not None:
        return OSError(f"HTTP status {status}: {said}")
    if any(_CONNECTION.search(kind.__name__) for kind in type(error).__mro__):
        return ConnectionError(said)
    return OSError(said)


def _status(error: Exception) -> int | None:
    """The HTTP status that the server answered with, if it did."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):  # botocore's
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status if isinstance(status, int) else None
    for owner in (error, answer):
        for name in ("status", "status_code", "code"):
            status = getattr(owner, name, None)
            if isinstance(status, int) and status >= 400:
                return int(status)
    return None
