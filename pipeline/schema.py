"""The one output schema, and the columns that rows carry between the stages.

Every file of an output has exactly this schema, whatever its rows hold: a column that is null in
one file and a string in another would make the folder unreadable as one table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import pyarrow as pa

from admg.stats import SequenceStats
from pipeline.errors import RowError
from pipeline.keys import KEY_BYTES

ROW_KEY = "row_key"
COMPLETION = "completion"
STATUS = "status"
ERROR_CODE = "error_code"
ERROR_MESSAGE = "error_message"
ATTEMPTS = "attempts"
FINISH_REASON = "finish_reason"

# Between stages only. The prefix keeps them apart from kept input columns, "prompt" for one.
PREFIX = "_admg_"
PROMPT = f"{PREFIX}prompt"
PARAMETERS = f"{PREFIX}parameters"
PROMPT_TOKEN_IDS = f"{PREFIX}prompt_token_ids"
TOKEN_IDS = f"{PREFIX}token_ids"
TOKEN_IDS_TYPE = pa.list_(pa.int32())

RESULT_FIELDS: tuple[pa.Field, ...] = (
    pa.field(ROW_KEY, pa.binary(KEY_BYTES)),
    pa.field(COMPLETION, pa.string()),
    pa.field(STATUS, pa.string()),
    pa.field(ERROR_CODE, pa.string()),
    pa.field(ERROR_MESSAGE, pa.string()),
    pa.field(ATTEMPTS, pa.int32()),
    pa.field(FINISH_REASON, pa.string()),
)

# A list of structs and not a map: `datasets` has no map type.
DRAFTER_TOKENS = pa.list_(pa.struct([("source", pa.string()), ("tokens", pa.int64())]))

STATISTICS: tuple[pa.Field, ...] = (
    pa.field("prompt_tokens", pa.int64()),
    pa.field("completion_tokens", pa.int64()),
    pa.field("mean_acceptance_length", pa.float64()),
    pa.field("draft_acceptance_rate", pa.float64()),
    pa.field("acceptance_histogram", pa.list_(pa.int64())),
    pa.field("num_spec_steps", pa.int64()),
    pa.field("num_draft_tokens", pa.int64()),
    pa.field("num_accepted_draft_tokens", pa.int64()),
    pa.field("speedup", pa.float64()),
    pa.field("speedup_end_to_end", pa.float64()),
    pa.field("dropped_attention_layers", pa.list_(pa.int32())),
    pa.field("attention_similarity", pa.list_(pa.float32())),
    pa.field("draft_kv_saved", pa.float64()),
    pa.field("drafter_tokens", DRAFTER_TOKENS),
    pa.field("prefill_seconds", pa.float64()),
    pa.field("decode_seconds", pa.float64()),
    pa.field("queue_seconds", pa.float64()),
    pa.field("audited", pa.bool_()),
    pa.field("audit_identical", pa.bool_()),
    pa.field("audit_near_tie", pa.bool_()),
    pa.field("audit_speedup", pa.float64()),
)

RESERVED = frozenset(f.name for f in (*RESULT_FIELDS, *STATISTICS))


def own_name(name: str) -> str:
    """The name of an input column as its shard has it, beside the one in the type of all shards."""
    return f"{PREFIX}own_{name}"


def output_schema(input_schema: pa.Schema, id_column: str, keep: Sequence[str]) -> pa.Schema:
    """The schema of every output file: the id, the kept columns, the result, the statistics.

    Args:
        input_schema: all columns that the run reads.
        id_column: the one of the ids.
        keep: those to copy.

    Raises:
        ValueError: an input column that has the name of a result column, or of an internal one.
    """
    internal = [name for name in input_schema.names if name.startswith(PREFIX)]
    if internal:
        raise ValueError(
            f"the input column {internal[0]!r} has a name that begins with {PREFIX!r}, as columns "
            "between the stages do: rename it in the input"
        )
    taken = sorted(RESERVED.intersection((id_column, *keep)))
    if taken:
        raise ValueError(
            f"the input column {taken[0]!r} has the name of a result column: "
            "rename it in the input, or leave it out of keep"
        )
    own = [input_schema.field(name).remove_metadata() for name in (id_column, *keep)]
    return pa.schema([own[0], RESULT_FIELDS[0], *own[1:], *RESULT_FIELDS[1:], *STATISTICS])


@dataclass(frozen=True, slots=True)
class RowResult:
    """What Decode says about one row: a completion with statistics, or an error."""

    token_ids: Sequence[int] = ()
    text: str | None = None
    finish_reason: str | None = None
    stats: SequenceStats | None = None
    error: RowError | None = None
    attempts: int = 0


def result_columns(rows: Sequence[RowResult]) -> dict[str, pa.Array]:
    """The columns of Decode's verdict, statistics included; statistics are null in error rows."""
    columns: dict[str, list[object]] = {
        TOKEN_IDS: [list(r.token_ids) for r in rows],
        COMPLETION: [r.text for r in rows],
        STATUS: ["error" if r.error else "ok" for r in rows],
        ERROR_CODE: [r.error.code if r.error else None for r in rows],
        ERROR_MESSAGE: [r.error.message if r.error else None for r in rows],
        ATTEMPTS: [r.attempts for r in rows],
        FINISH_REASON: [r.finish_reason for r in rows],
    }
    types = {f.name: f.type for f in RESULT_FIELDS} | {TOKEN_IDS: TOKEN_IDS_TYPE}
    arrays = {name: pa.array(values, types[name]) for name, values in columns.items()}
    for field in STATISTICS:
        values = [None if r.stats is None else getattr(r.stats, field.name) for r in rows]
        if field.type == DRAFTER_TOKENS:
            values = [_pairs(v) for v in values]
        arrays[field.name] = pa.array(values, field.type)
    return arrays


def _pairs(tokens: dict[str, int] | None) -> list[dict[str, object]] | None:
    if tokens is None:
        return None
    return [{"source": source, "tokens": count} for source, count in sorted(tokens.items())]


def check_statistics() -> None:
    """Raise where the engine's statistics and the columns have drifted apart."""
    known = {f.name for f in fields(SequenceStats)}
    if known != {f.name for f in STATISTICS}:
        raise AssertionError(f"columns and SequenceStats differ in {known ^ set(RESERVED)}")
