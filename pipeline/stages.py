"""The stages around Decode, each a callable from table to table that needs no Ray to be tested.

Every row that goes into a stage comes out of it once; `Prepare` (in its own file) alone leaves rows
out, those that are committed already. A row that became an error row passes through the later
stages untouched.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from admg.config import SamplingParams
from pipeline.config import PromptConfig
from pipeline.errors import BAD_PARAMETER, PROMPT_INVALID, RowError
from pipeline.factory import EngineFactory, TokenizerLike
from pipeline.parameters import laws_of, parameters_in
from pipeline.prompts import PromptEncoder
from pipeline.retry import one_line
from pipeline.schema import (
    COMPLETION,
    ERROR_CODE,
    ERROR_MESSAGE,
    PROMPT,
    PROMPT_TOKEN_IDS,
    STATUS,
    TOKEN_IDS,
    TOKEN_IDS_TYPE,
)


class Tokenize:
    """Prompt -> prompt token ids that fit the model. Holds a tokenizer.

    Args:
        factory: gives the tokenizer.
        prompt: how prompts are made.
        limit: the longest prompt in tokens beside the job's `max_tokens` (None: no limit).
        sampling: the job's law; rows may have parameters of their own.
    """

    def __init__(
        self,
        factory: EngineFactory,
        prompt: PromptConfig,
        limit: int | None,
        sampling: SamplingParams | None = None,
    ) -> None:
        chat = prompt.mode == "chat"
        self._encoder = PromptEncoder(factory.tokenizer(), chat, prompt.on_long, limit)
        self._sampling = sampling or SamplingParams()
        self._context = None if limit is None else limit + self._sampling.max_tokens

    def __call__(self, table: pa.Table) -> pa.Table:
        """Replace the prompt's text by its token ids."""
        prompts = table[PROMPT].to_pylist()
        errors = errors_of(table)
        token_ids: list[list[int]] = [[] for _ in prompts]
        for room, rows in self._by_room(table, errors).items():
            found = _encoded(self._encoder.within(room), [prompts[i] for i in rows])
            for i, encoded in zip(rows, found, strict=True):
                if isinstance(encoded, RowError):
                    errors[i] = encoded
                else:
                    token_ids[i] = encoded
        out = table.drop_columns([PROMPT, ERROR_CODE, ERROR_MESSAGE])
        out = out.append_column(PROMPT_TOKEN_IDS, pa.array(token_ids, TOKEN_IDS_TYPE))
        return append_errors(out, errors)

    def _by_room(
        self, table: pa.Table, errors: list[RowError | None]
    ) -> dict[int | None, list[int]]:
        """The good rows by the longest prompt that their `max_tokens` leave room for."""
        rooms: dict[int | None, list[int]] = {}
        laws = laws_of(parameters_in(table), self._sampling, errors)
        for i, (error, law) in enumerate(zip(errors, laws, strict=True)):
            if error is not None:
                continue
            room = None if self._context is None else self._context - law.max_tokens
            if room is not None and room < 1:
                errors[i] = RowError(
                    BAD_PARAMETER,
                    f"max_tokens is {law.max_tokens}: it must leave room for a prompt in the "
                    f"model's {self._context} tokens",
                )
            else:
                rooms.setdefault(room, []).append(i)
        return rooms


def _encoded(encoder: PromptEncoder, prompts: list[str]) -> list[list[int] | RowError]:
    """What the encoder makes of each prompt; an error for those that its tokenizer raises at.

    Ray would start a call that raises again and again. A tokenizer in Rust that panics raises what
    is no Exception.
    """
    try:
        return encoder.encode(prompts)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        if len(prompts) > 1:
            return [encoded for prompt in prompts for encoded in _encoded(encoder, [prompt])]
        return [RowError(PROMPT_INVALID, f"the tokenizer refuses the prompt: {one_line(error)}")]


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


def append_errors(table: pa.Table, errors: Sequence[RowError | None]) -> pa.Table:
    """A table with the error of each row, which `errors_of` gives back."""
    codes = pa.array([e.code if e else None for e in errors], pa.string())
    messages = pa.array([e.message if e else None for e in errors], pa.string())
    return table.append_column(ERROR_CODE, codes).append_column(ERROR_MESSAGE, messages)
