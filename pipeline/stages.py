"""The stages around Decode, each a callable from table to table that needs no Ray to be tested.

Every row that goes into a stage comes out of it once; `Prepare` alone leaves rows out, those that
are committed already. A row that became an error row passes through the later stages untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import PromptConfig
from pipeline.errors import RowError
from pipeline.factory import EngineFactory, TokenizerLike
from pipeline.keys import KEY_BYTES, KeySet, as_keys, row_key
from pipeline.prompts import NOT_UNICODE, PromptBuilder, PromptEncoder
from pipeline.schema import (
    COMPLETION,
    ERROR_CODE,
    ERROR_MESSAGE,
    PROMPT,
    PROMPT_TOKEN_IDS,
    ROW_KEY,
    STATUS,
    TOKEN_IDS,
    TOKEN_IDS_TYPE,
)


def values_of(column: pa.ChunkedArray) -> list[Any]:
    """A column's values; `NOT_UNICODE` where a text is not UTF-8 (Parquet does not check)."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_value_of(scalar) for scalar in column]


def _value_of(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return NOT_UNICODE


@dataclass(frozen=True, slots=True)
class PreparedRows:
    """Prompts and keys of the rows of one table, in its order."""

    ids: list[int | str]
    prompts: list[str | RowError]
    keys: list[bytes]


def prepare_rows(table: pa.Table, id_column: str, config: PromptConfig) -> PreparedRows:
    """Build the prompt and the key of every row."""
    builder = PromptBuilder(config)
    names = config.columns
    columns = [values_of(table[name]) for name in names]
    ids: list[int | str] = values_of(table[id_column])
    rows = zip(*columns, strict=True)
    prompts = [builder.build(dict(zip(names, row, strict=True))) for row in rows]
    keys = [
        row_key(row_id, None if isinstance(prompt, RowError) else prompt)
        for row_id, prompt in zip(ids, prompts, strict=True)
    ]
    return PreparedRows(ids, prompts, keys)


@dataclass(frozen=True, slots=True)
class Prepare:
    """Input columns -> id, kept columns, row key, prompt, error; committed rows are left out.

    `committed` gives the committed keys: a function, so that the sorted array can stay in the
    object store, where all processes of a machine share it.
    """

    id_column: str
    keep: Sequence[str]
    prompt: PromptConfig
    committed: Callable[[], KeySet] | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        """One table of input rows to one of prepared rows."""
        rows = prepare_rows(table, self.id_column, self.prompt)
        errors = [p if isinstance(p, RowError) else None for p in rows.prompts]
        out = table.select([self.id_column, *self.keep])
        texts = [None if isinstance(p, RowError) else p for p in rows.prompts]
        out = out.append_column(ROW_KEY, pa.array(rows.keys, pa.binary(KEY_BYTES)))
        out = out.append_column(PROMPT, pa.array(texts, pa.string()))
        out = _append_errors(out, errors)
        if self.committed is None:
            return out
        return out.filter(pa.array(~self.committed().contains(as_keys(rows.keys))))


class Tokenize:
    """Prompt -> prompt token ids that fit the model. Holds a tokenizer."""

    def __init__(self, factory: EngineFactory, prompt: PromptConfig, limit: int | None) -> None:
        chat = prompt.mode == "chat"
        self._encoder = PromptEncoder(factory.tokenizer(), chat, prompt.on_long, limit)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Replace the prompt's text by its token ids."""
        prompts = table[PROMPT].to_pylist()
        errors = errors_of(table)
        good = [i for i, error in enumerate(errors) if error is None]
        token_ids: list[list[int]] = [[] for _ in prompts]
        for i, encoded in zip(good, self._encoder.encode([prompts[i] for i in good]), strict=True):
            if isinstance(encoded, RowError):
                errors[i] = encoded
            else:
                token_ids[i] = encoded
        out = table.drop_columns([PROMPT, ERROR_CODE, ERROR_MESSAGE])
        out = out.append_column(PROMPT_TOKEN_IDS, pa.array(token_ids, TOKEN_IDS_TYPE))
        return _append_errors(out, errors)


class Detokenize:
    """Token ids -> text where the engine has not done so, and the columns in their final order."""

    def __init__(self, factory: EngineFactory, schema: pa.Schema) -> None:
        self._factory = factory
        self._schema = schema
        self._tokenizer: TokenizerLike | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        """One table in the output's schema."""
        missing = pc.and_(pc.is_null(table[COMPLETION]), pc.equal(table[STATUS], "ok"))
        if pc.any(missing).as_py():
            texts = table[COMPLETION].to_pylist()
            token_ids = table[TOKEN_IDS].to_pylist()
            for i in pc.indices_nonzero(missing).to_pylist():
                texts[i] = self._decode(token_ids[i])
            column = pa.array(texts, pa.string())
            table = table.set_column(table.column_names.index(COMPLETION), COMPLETION, column)
        return table.select(self._schema.names).cast(self._schema)

    def _decode(self, token_ids: list[int]) -> str:
        if self._tokenizer is None:
            self._tokenizer = self._factory.tokenizer()
        return self._tokenizer.decode(token_ids, skip_special=True)


def errors_of(table: pa.Table) -> list[RowError | None]:
    """The error of each row of a table between two stages."""
    pairs = zip(table[ERROR_CODE].to_pylist(), table[ERROR_MESSAGE].to_pylist(), strict=True)
    return [None if code is None else RowError(code, message) for code, message in pairs]


def _append_errors(table: pa.Table, errors: Sequence[RowError | None]) -> pa.Table:
    codes = pa.array([e.code if e else None for e in errors], pa.string())
    messages = pa.array([e.message if e else None for e in errors], pa.string())
    return table.append_column(ERROR_CODE, codes).append_column(ERROR_MESSAGE, messages)
