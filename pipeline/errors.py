"""The two families of errors of the data plane: a row's own (a value) and the run's (exceptions).

A `ValueError` is a user's mistake and comes before any model is loaded. A `PipelineError` ends a
run that had begun; what is committed stays, and the same command goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass

PROMPT_EMPTY = "prompt_empty"
PROMPT_NULL = "prompt_null"
PROMPT_INVALID = "prompt_invalid"
PROMPT_TOO_LONG = "prompt_too_long"
INVALID_UNICODE = "invalid_unicode"
BAD_PARAMETER = "bad_parameter"
MODEL_OUTPUT_INVALID = "model_output_invalid"
OUT_OF_MEMORY = "out_of_memory"
DEADLINE = "deadline"
CRASHED = "crashed"


@dataclass(frozen=True, slots=True)
class RowError:
    """Why one row has no completion; it becomes an error row and the job goes on."""

    code: str
    message: str


class PipelineError(RuntimeError):
    """The run ended before every row was committed. One sentence for people."""


class StorageError(PipelineError):
    """Storage failed for longer than a run has patience."""


class Locked(PipelineError):
    """Another run holds this output's lease. Nothing was begun."""


class Fenced(PipelineError):
    """This run, or this part of it, must not write any more: the output has another owner."""
