"""Retries: what may pass is tried again, what cannot pass is not, and patience ends."""

from __future__ import annotations

import errno

import pytest

from pipeline.errors import StorageError
from pipeline.retry import Patience, may_pass

PASSING = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.ECONNRESET, "Connection reset by peer"),
    TimeoutError("timed out"),
    OSError("When reading: AWS Error SLOW_DOWN during GetObject operation: reduce your request"),
    OSError("AWS Error UNKNOWN (HTTP status 503) during HeadObject operation: No response body."),
    OSError("AWS Error NETWORK_CONNECTION during PutObject operation: curlCode: 7, no server"),
    OSError("google::cloud::Status(UNAVAILABLE: try later)"),
]
LASTING = [
    FileNotFoundError(errno.ENOENT, "No such file or directory"),
    PermissionError(errno.EACCES, "Permission denied"),
    OSError(errno.EROFS, "Read-only file system"),
    OSError("AWS Error ACCESS_DENIED during PutObject operation: timeout of the token"),
    OSError("AWS Error NO_SUCH_BUCKET during PutObject operation: no such bucket"),
    OSError("Unexpected end of stream: Page was smaller (503) than expected (504)"),
    ValueError("timed out"),
]


@pytest.mark.parametrize("error", PASSING)
def test_what_may_pass_is_tried_again(error: Exception) -> None:
    left = [error, error]

    def action() -> str:
        if left:
            raise left.pop()
        return "done"

    assert may_pass(error)
    assert Patience(seconds=60, first=0.001).run("writing x", action) == "done"
    assert not left


@pytest.mark.parametrize("error", LASTING)
def test_what_cannot_pass_is_raised_at_once_and_as_it_is(error: Exception) -> None:
    calls: list[int] = []

    def action() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)) as caught:
        Patience().run("writing x", action)
    assert caught.value is error
    assert len(calls) == 1


def test_patience_ends_with_one_sentence() -> None:
    def action() -> None:
        raise OSError(errno.ENOSPC, "No space left on device\nand more")

    with pytest.raises(StorageError) as caught:
        Patience(seconds=0.05, first=0.001).run("writing part-1", action)
    said = str(caught.value)
    assert said.startswith("writing part-1 failed ")
    assert "in 0.05 seconds" in said
    assert "No space left" in said
    assert "\n" not in said
    assert int(said.split()[3]) > 1


def test_pauses_grow_and_end() -> None:
    assert list(Patience(seconds=0).pauses()) == []
    some = [pause for pause, _ in zip(Patience(1e6, 1.0, 8.0).pauses(), range(8), strict=False)]
    for pause, whole in zip(some, [1, 2, 4, 8, 8, 8, 8, 8], strict=True):
        assert whole / 2 <= pause <= whole
