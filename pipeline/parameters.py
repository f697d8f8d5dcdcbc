"""Sampling parameters of single rows, from input columns that have the parameters' names.

A null is the job's own value. What a row gives is kept as canonical JSON, which is part of its row
key; a row that gives nothing has none, and the key that it would have without such columns.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from admg.config import SamplingParams
from pipeline.errors import BAD_PARAMETER, INVALID_UNICODE, RowError
from pipeline.prompts import NOT_UNICODE
from pipeline.schema import PARAMETERS

_INTEGERS = ("max_tokens", "min_tokens", "top_k", "seed")
_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty")

_KINDS_OF_TEXT = {
    **dict.fromkeys(_INTEGERS, ((pa.int64(), pa.uint64()), "a whole number")),
    **dict.fromkeys(_NUMBERS, ((pa.float64(),), "a number")),
    "ignore_eos": ((pa.bool_(),), "true or false"),
}


def check_parameter_type(name: str, kind: pa.DataType) -> str | None:
    """What a column of this parameter must hold, if this type is not that."""
    if pt.is_null(kind):
        return None
    inner = kind.value_type if pt.is_list(kind) or pt.is_large_list(kind) else None
    if name == "ignore_eos":
        return None if pt.is_boolean(kind) else "booleans"
    if name == "stop":
        texts = inner is not None and (pt.is_string(inner) or pt.is_large_string(inner))
        return None if texts or pt.is_null(inner or kind) else "lists of text"
    if name == "stop_token_ids":
        return None if inner is not None and pt.is_integer(inner) else "lists of integers"
    # Integers may come as floats: a column with nulls does, out of pandas.
    return None if pt.is_integer(kind) or pt.is_floating(kind) else "numbers"


def type_of_text(name: str, text: str | None) -> tuple[pa.DataType | None, str]:
    """The type of a parameter that is given as text; None where it is none. And what is right."""
    if text is None:
        return pa.null(), ""
    kinds, right = _KINDS_OF_TEXT.get(name, ((), "a column of the file, for it is a list"))
    for kind in kinds:
        with suppress(pa.ArrowInvalid):
            pa.scalar(text).cast(kind)
            return kind, right
    return None, right


def row_parameters(given: Mapping[str, Any], job: SamplingParams) -> tuple[str, RowError | None]:
    """A row's own parameters as canonical JSON ("" for none), and what is wrong with them.

    Args:
        given: values by parameter; None where the row leaves it to the job.
        job: the job's parameters.
    """
    own = {name: _plain(name, value) for name, value in given.items() if value is not None}
    if not own:
        return "", None
    text = json.dumps(own, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    for name, value in given.items():
        if value is NOT_UNICODE:
            return text, RowError(INVALID_UNICODE, f"the column {name!r} is not valid UTF-8")
    try:
        _law(own, job)
    except (ValueError, TypeError) as error:
        return text, RowError(BAD_PARAMETER, str(error))
    return text, None


def parameters_in(table: pa.Table) -> list[str | None]:
    """The own parameters of the rows of a table between two stages."""
    if PARAMETERS not in table.schema.names:
        return [None] * table.num_rows
    return list(table[PARAMETERS].to_pylist())


def laws_of(
    parameters: Sequence[str | None],
    job: SamplingParams,
    errors: Sequence[RowError | None] | None = None,
) -> list[SamplingParams]:
    """The laws of rows; those that give the same share one. Rows with an error get the job's."""
    bad = errors or [None] * len(parameters)
    own = [None if e else p for p, e in zip(parameters, bad, strict=True)]
    known = {text: _law(json.loads(text), job) if text else job for text in set(own)}
    return [known[text] for text in own]


def most_tokens(parameters: Iterable[str]) -> int:
    """The longest completion that rows ask for with parameters of their own; 0 where none does."""
    own = (json.loads(text).get("max_tokens") for text in set(parameters) if text)
    return max((tokens for tokens in own if isinstance(tokens, int)), default=0)


def _plain(name: str, value: Any) -> Any:
    """One spelling for one value: 1 and 1.0 are the same temperature, 64.0 is 64 tokens."""
    if name in _INTEGERS and isinstance(value, float) and value.is_integer():
        return int(value)
    if name in _NUMBERS and isinstance(value, int):
        return float(value)
    if isinstance(value, float) and value != value:
        return "not a number"  # JSON has no such thing
    if value is NOT_UNICODE:
        return "not UTF-8"  # the same in every process: it becomes part of the row key
    return value


def _law(own: Mapping[str, Any], job: SamplingParams) -> SamplingParams:
    for name in _INTEGERS:
        if not isinstance(own.get(name, 0), int):
            raise ValueError(f"{name} is {own[name]!r}: it must be a whole number")
    for name in _NUMBERS:
        if not isinstance(own.get(name, 0.0), float):
            raise ValueError(f"{name} is {own[name]!r}: it must be a number")
    for name in ("stop", "stop_token_ids"):
        if any(item is None for item in own.get(name, ())):
            raise ValueError(f"{name} is {own[name]!r}: it must hold no null")
    values: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in own.items()
    }
    return replace(job, **values)
