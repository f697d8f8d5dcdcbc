"""Storage that fails for a while: tried again with growing pauses, then given up in one sentence.

Only errors that may pass are tried again: throttling, timeouts, lost connections, a full disk.
What is missing, forbidden or not there to be written stays so and is raised at once.
"""

from __future__ import annotations

import errno
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from pipeline.errors import StorageError

T = TypeVar("T")

_PASSING = {
    getattr(errno, name)
    for name in (
        *("EAGAIN", "EINTR", "EBUSY", "ETIMEDOUT", "ESTALE", "ENOSPC", "EDQUOT", "EMFILE"),
        *("ECONNRESET", "ECONNREFUSED", "ECONNABORTED", "EPIPE", "ENETUNREACH", "EHOSTUNREACH"),
    )
}
# What object stores' clients say; they have no errno. The codes are those of the AWS SDK, of
# REST answers and of curl.
_PASSING_WORDS = re.compile(
    r"SLOW_?DOWN|THROTTL|INTERNAL_(FAILURE|ERROR)|InternalError|SERVICE_UNAVAILABLE|REQUEST_TIME"
    r"|NETWORK_CONNECTION|HTTP (status|response)( code)?:? (429|5\d\d)"
    r"|Status\((UNAVAILABLE|RESOURCE_EXHAUSTED|DEADLINE_EXCEEDED|INTERNAL)"
    r"|timed? ?out|timeout|too many requests|rate.?limit|reduce your request rate"
    r"|service unavailable|temporarily unavailable|connection (was )?(reset|refused|aborted|closed)"
    r"|broken pipe|no space left|try again|curlCode: (6|7|18|28|35|52|55|56)\b",
    re.IGNORECASE,
)
_LASTING_WORDS = re.compile(r"NO_SUCH_|ACCESS_DENIED|INVALID_|SIGNATURE_DOES_NOT_MATCH")
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def may_pass(error: BaseException) -> bool:
    """Whether trying again may help."""
    if isinstance(error, _LASTING) or not isinstance(error, OSError):
        return False
    if isinstance(error, TimeoutError | ConnectionError) or error.errno in _PASSING:
        return True
    text = str(error)
    lasting = error.errno is not None or _LASTING_WORDS.search(text)
    return not lasting and _PASSING_WORDS.search(text) is not None


def one_line(error: BaseException) -> str:
    """The first line of what an error says, or else its name."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to go on trying: `seconds` in all, the pauses doubling from `first` to `longest`.

    The pauses are drawn (between half and the whole), so that many writers that were throttled
    together do not come back together.
    """

    seconds: float = 60.0
    first: float = 0.25
    longest: float = 15.0

    def pauses(self) -> Iterator[float]:
        """The pauses between attempts; it ends where the patience does."""
        end = time.monotonic() + self.seconds
        pause = self.first
        while (left := end - time.monotonic()) > 0:
            yield min(left, pause * random.uniform(0.5, 1.0))
            pause = min(self.longest, 2 * pause)

    def again(self, action: Callable[[], T], passes: Callable[[Exception], bool]) -> T:
        """What `action` returns, tried again after errors that pass.

        Args:
            action: called until it succeeds, fails for good, or the patience ends.
            passes: whether trying again may help; where not, and at the end, the error is raised.
        """
        pauses = self.pauses()
        while True:
            try:
                return action()
            except Exception as error:
                pause = next(pauses, None) if passes(error) else None
                if pause is None:
                    raise
            time.sleep(pause)

    def run(self, what: str, action: Callable[[], T]) -> T:
        """What `action` on a storage returns. It must be safe to repeat.

        Args:
            what: for the sentence, as "writing part-1.parquet".
            action: called until it succeeds, fails for good, or the patience ends.

        Raises:
            StorageError: the patience ended. Errors that cannot pass are raised as they are.
        """
        attempts = 0

        def counted() -> T:
            nonlocal attempts
            attempts += 1
            return action()

        try:
            return self.again(counted, may_pass)
        except OSError as error:
            if not may_pass(error):
                raise
            raise StorageError(
                f"{what} failed {attempts} times in {self.seconds:g} seconds: {one_line(error)}"
            ) from error


PATIENCE = Patience()
"""The usual one."""
