"""Rows with sampling parameters of their own."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest

from admg.config import SamplingParams
from pipeline.columns import checked_field
from pipeline.config import PromptConfig, RunConfig
from pipeline.keys import row_key
from pipeline.parameters import laws_of, most_tokens, row_parameters
from pipeline.prepare import Prepare
from pipeline.schema import ERROR_CODE, ERROR_MESSAGE, PROMPT_TOKEN_IDS, ROW_KEY
from pipeline.shards import BadShard, Shard
from pipeline.stages import Tokenize
from tests.pipeline.standin import CONTEXT, StandIn

JOB = SamplingParams(max_tokens=16, temperature=0.5, seed=3)


def test_what_a_row_gives_replaces_the_jobs_and_nothing_else() -> None:
    text, error = row_parameters({"max_tokens": 5, "temperature": None, "stop": ["x"]}, JOB)
    assert error is None
    (law, same) = laws_of([text, None], JOB)
    assert law == SamplingParams(max_tokens=5, temperature=0.5, seed=3, stop=("x",))
    assert same is JOB


def test_one_value_has_one_spelling() -> None:
    """Pandas makes floats of integers beside nulls; the row key must not see it."""
    plain = row_parameters({"max_tokens": 5, "temperature": 1.0}, JOB)
    assert row_parameters({"temperature": 1, "max_tokens": 5.0}, JOB) == plain
    assert row_parameters({"max_tokens": None, "temperature": None}, JOB) == ("", None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_tokens": 0}, "max_tokens is 0: it must be at least 1"),
        ({"max_tokens": 2.5}, "max_tokens is 2.5: it must be a whole number"),
        ({"temperature": -1.0}, "temperature is -1.0: it must be 0 or a number above it"),
        ({"temperature": math.nan}, "temperature is 'not a number': it must be a number"),
        ({"temperature": math.inf}, "temperature is inf: it must be"),
        ({"top_p": 0.0}, "top_p is 0.0: it must be above 0 and at most 1"),
        ({"top_k": -1}, "top_k is -1: it must be 0 (off) or more"),
        ({"seed": 2**64}, "seed is 18446744073709551616: it must be between 0 and"),
        ({"min_tokens": 99}, "min_tokens is 99: it must be between 0 and max_tokens (16)"),
        ({"stop": ["x", None]}, "stop is ['x', None]: it must hold no null"),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, Any], said: str) -> None:
    text, error = row_parameters(given, JOB)
    assert error is not None
    assert text
    assert error.code == "bad_parameter"
    assert error.message.startswith(said)
    assert "\n" not in error.message


def test_keys_of_rows_without_parameters_stay_as_they_were() -> None:
    table = pa.table(
        {"id": [1, 2, 3], "prompt": ["a", "b", "c"], "max_tokens": [None, 5, 0], "seed": [None] * 3}
    )
    names = ("max_tokens", "seed")
    rows = Prepare("id", (), PromptConfig(), None, names, JOB)(table)
    assert rows[ROW_KEY].to_pylist() == [
        row_key(1, "a"),
        row_key(2, "b", '{"max_tokens":5}'),
        row_key(3, "c", '{"max_tokens":0}'),
    ]
    assert rows[ERROR_CODE].to_pylist() == [None, None, "bad_parameter"]


def test_a_stop_text_that_is_not_unicode_is_an_error_row_with_a_key_that_stays() -> None:
    stops = pa.array([[b"x"], [b"y", b"\xff"]], pa.list_(pa.binary()))
    texts = pa.ListArray.from_arrays(stops.offsets, stops.values.view(pa.string()))
    table = pa.table({"id": [1, 2], "prompt": ["a", "b"], "stop": texts})
    rows = Prepare("id", (), PromptConfig(), None, ("stop",), JOB)(table)
    assert rows[ROW_KEY].to_pylist() == [
        row_key(1, "a", '{"stop":["x"]}'),
        row_key(2, "b", '{"stop":"not UTF-8"}'),
    ]
    assert rows[ERROR_CODE].to_pylist() == [None, "invalid_unicode"]
    assert rows[ERROR_MESSAGE].to_pylist()[1] == "the column 'stop' is not valid UTF-8"


def test_the_longest_completion_that_rows_ask_for() -> None:
    given = [{}, {"seed": 9}, {"max_tokens": 4096.0}, {"max_tokens": 70, "seed": 1}]
    given.append({"max_tokens": float("nan")})
    assert most_tokens(row_parameters(values, JOB)[0] for values in given) == 4096
    assert most_tokens(["", ""]) == 0


def test_a_completion_must_leave_room_for_its_prompt() -> None:
    table = pa.table(
        {
            "id": [1, 2, 3, 4],
            "prompt": ["a", "b" * 300, "b" * 300, "c"],
            "max_tokens": [None, 50, 150, CONTEXT],
        }
    )
    prepared = Prepare("id", (), PromptConfig(), None, ("max_tokens",), JOB)(table)
    limit = CONTEXT - JOB.max_tokens
    rows = Tokenize(StandIn(), PromptConfig(), limit, JOB)(prepared)
    codes = [None, None, "prompt_too_long", "bad_parameter"]
    assert rows[ERROR_CODE].to_pylist() == codes
    assert [len(ids) for ids in rows[PROMPT_TOKEN_IDS].to_pylist()] == [2, 301, 0, 0]
    said = rows[ERROR_MESSAGE].to_pylist()
    assert "301 tokens: at most 250" in said[2]
    assert said[3] == (
        f"max_tokens is {CONTEXT}: it must leave room for a prompt in the model's {CONTEXT} tokens"
    )


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("max_tokens", pa.uint16(), pa.string()),
        ("temperature", pa.float32(), pa.bool_()),
        ("ignore_eos", pa.bool_(), pa.int8()),
        ("stop", pa.list_(pa.string()), pa.string()),
        ("stop_token_ids", pa.large_list(pa.int64()), pa.int64()),
    ],
)
def test_columns_of_parameters_have_their_types(
    name: str, good: pa.DataType, bad: pa.DataType
) -> None:
    config = RunConfig(("in",), "out", "model", row_parameters=(name,))
    shard = Shard("in", "in/a.parquet")
    assert checked_field(shard, pa.schema([(name, good)]), name, config).type == good
    assert checked_field(shard, pa.schema([(name, pa.null())]), name, config).type == pa.null()
    with pytest.raises(BadShard, match=f"the parameter column '{name}' is of type"):
        checked_field(shard, pa.schema([(name, bad)]), name, config)


def test_unknown_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"row_parameters is \['heat'\]: it must be some of max"):
        RunConfig(("in",), "out", "model", row_parameters=("heat", "seed"))
