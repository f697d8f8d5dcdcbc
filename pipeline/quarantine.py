"""What follows from the deaths of engines: who is suspected, who must be alone, who is guilty.

A process that dies takes every row in its engine down, and nobody can say which one did it. So
rows that were there too often are decoded in small company, then alone; a row that keeps killing
engines that hold nothing else is guilty. Chance (a lost machine, a kill) hits a row alone once, but
hardly again and again, so innocent rows come through.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.attempts import Deaths
from pipeline.errors import CRASHED, OUT_OF_MEMORY, RowError

_SMALL_COMPANY = 8
_PROMPT_TOKENS_A_STEP = 10
# CUDA keeps these errors: whatever the process does next fails too. Matched in the message, for
# torch raises a plain RuntimeError for most of them.
_STICKY = (
    "cuda error",
    "cuda driver error",
    "cublas",
    "cudnn",
    "device-side assert",
    "illegal memory access",
    "an illegal instruction",
    "misaligned address",
    "unspecified launch failure",
    "uncorrectable ecc",
    "busy or unavailable",
)
# Likewise: torch has an exception of its own for memory on GPUs alone, and not in all of its parts.
_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "status_alloc_failed",
    "bad_alloc",
)


@dataclass(frozen=True, slots=True)
class Rules:
    """When rows are suspected and quarantined.

    A row whose engines died `max_crashes` times is decoded in small company; one that was alone in
    as many deaths is quarantined. Whole runs that ended without a word lead to small company too,
    but to no more than that. `max_num_seqs` is the engine's batch. A row may take
    `row_seconds`, and `token_seconds` for each token of its longest completion, and for every ten
    of its prompt.
    """

    max_crashes: int
    max_num_seqs: int
    row_seconds: float
    token_seconds: float

    def verdict(self, deaths: Deaths, others: int = 0) -> RowError | None:
        """The error of a row that is guilty.

        Where engines die without it too (`others` times), chance gets more chances: each doubling
        of them asks for one more death alone. A deadline that is missed alone needs no repetition:
        no accident does that, and each try takes as long as the deadline is.
        """
        needed = self.max_crashes + (others + 1).bit_length() - 1
        if deaths.alone < needed and not deaths.late_alone:
            return None
        alone = deaths.alone + deaths.late_alone
        times = f"{deaths.total} attempts, {alone} of them with no other row to suspect"
        return RowError(deaths.code, f"{deaths.message} ({times})")

    def company(self, deaths: Deaths) -> int | None:
        """The most rows that may be in the engine with this one, itself included; None: any."""
        size: int | None = None
        if deaths.ooms:
            size = max(1, self.max_num_seqs >> deaths.ooms)
        suspicion = deaths.crashes + self.max_crashes * deaths.deadlines
        suspicion = max(suspicion, min(deaths.lost, self.max_crashes))
        if suspicion >= self.max_crashes:
            small = 1 if suspicion > self.max_crashes else _SMALL_COMPANY
            size = small if size is None else min(size, small)
        return size

    def batch(self, full_ooms: int) -> int:
        """The engine's batch after so many times out of memory with rows under no suspicion.

        The first time may be one row's fault; the second is the batch's.
        """
        return max(1, self.max_num_seqs >> full_ooms // 2)

    def deadline(self, prompt: int, new: int) -> float:
        """Seconds for a row with so many prompt tokens, which go many at a time, and new ones."""
        return self.row_seconds + self.token_seconds * (new + prompt / _PROMPT_TOKENS_A_STEP)


def code_of(error: BaseException) -> str:
    """What kind of death an exception means: `out_of_memory` or `crashed`."""
    name, text = type(error).__name__, str(error).lower()
    memory = isinstance(error, MemoryError) or name == "OutOfMemoryError"
    return OUT_OF_MEMORY if memory or any(s in text for s in _MEMORY) else CRASHED


def describe(error: BaseException) -> str:
    """An exception in one line, with a word on the GPU where its state is lost."""
    line = (str(error).strip().splitlines() or ["no message"])[0]
    text = f"{type(error).__name__}: {line}"
    sticky = code_of(error) == CRASHED and any(s in str(error).lower() for s in _STICKY)
    return f"the GPU's state is lost: {text}" if sticky else f"the engine died: {text}"
