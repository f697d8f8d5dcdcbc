"""From a row's columns to a prompt, and from a prompt to token ids that fit the model.

Nothing here knows Ray or Parquet. What is wrong with one row is a `RowError`, never an exception.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from pipeline.config import OnLong, PromptConfig
from pipeline.errors import (
    INVALID_UNICODE,
    PROMPT_EMPTY,
    PROMPT_INVALID,
    PROMPT_NULL,
    PROMPT_TOO_LONG,
    RowError,
)
from pipeline.factory import TokenizerLike
from pipeline.template import Template

NOT_UNICODE: Final = object()
"""Stands in a column's values for bytes that are not UTF-8."""


@dataclass(frozen=True, slots=True)
class NotText:
    """Stands in a column's values for one that cannot be shown as text, and says why."""

    why: str


Messages = list[dict[str, Any]]


class PromptBuilder:
    """Makes the prompt of a row: text, or in chat mode its messages as canonical JSON."""

    def __init__(self, config: PromptConfig) -> None:
        self._config = config
        self._template = None if config.template is None else Template.parse(config.template)

    def build_all(self, columns: Sequence[Sequence[Any]]) -> list[str | RowError]:
        """The prompts of rows, from the values of each of `PromptConfig.columns`."""
        names = self._config.columns
        if self._config.mode == "raw":
            (texts,) = columns
            # Most jobs and most rows: text that is there.
            return [
                text if type(text) is str and text and not text.isspace() else self._one(text)
                for text in texts
            ]
        rows = zip(*columns, strict=True)
        return [self.build(dict(zip(names, row, strict=True))) for row in rows]

    def _one(self, value: Any) -> str | RowError:
        return self.build({self._config.column: value})

    def build(self, row: Mapping[str, Any]) -> str | RowError:
        """The prompt of a row that has all of `PromptConfig.columns`."""
        for name in self._config.columns:
            if row[name] is NOT_UNICODE:
                return RowError(INVALID_UNICODE, f"the column {name!r} is not valid UTF-8")
            if isinstance(row[name], NotText):
                return RowError(PROMPT_INVALID, f"the column {name!r} {row[name].why}")
            if row[name] is None:
                return RowError(PROMPT_NULL, f"the column {name!r} is null")
        content: Any = row[self._config.column] if self._template is None else self._fill(row)
        if self._config.mode == "chat":
            return self._chat(content)
        if not content.strip():
            return RowError(PROMPT_EMPTY, "the prompt is empty")
        return str(content)

    def _fill(self, row: Mapping[str, Any]) -> str:
        assert self._template is not None
        return self._template.fill({name: str(row[name]) for name in self._template.columns})

    def _chat(self, content: Any) -> str | RowError:
        given = [{"role": "user", "content": content}] if isinstance(content, str) else content
        messages: Messages = []
        for message in given:
            fields = {k: v for k, v in (message or {}).items() if v is not None}
            if not (isinstance(fields.get("role"), str) and isinstance(fields.get("content"), str)):
                return RowError(PROMPT_INVALID, "a chat message lacks its role or its content")
            messages.append(fields)
        if not any(m["content"].strip() for m in messages):
            return RowError(PROMPT_EMPTY, "the prompt is empty")
        if self._config.system is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self._config.system})
        return json.dumps(messages, ensure_ascii=False, sort_keys=True, default=str)


@dataclass(frozen=True, slots=True)
class PromptEncoder:
    """Turns prompts into token ids of at most `limit` (None: any number)."""

    tokenizer: TokenizerLike
    chat: bool
    on_long: OnLong
    limit: int | None

    def within(self, limit: int | None) -> PromptEncoder:
        """The same with another limit."""
        return self if limit == self.limit else replace(self, limit=limit)

    def encode(self, prompts: Sequence[str]) -> list[list[int] | RowError]:
        """Token ids, or what is wrong, for each prompt in its place."""
        if not prompts:
            return []
        if self.chat:
            return [self._encode_chat(json.loads(prompt)) for prompt in prompts]
        return [self._fit(ids) for ids in self.tokenizer.encode(prompts, special=True)]

    def _too_long(self, length: int) -> bool:
        return self.limit is not None and length > self.limit

    def _refusal(self, length: int) -> RowError:
        return RowError(
            PROMPT_TOO_LONG,
            f"the prompt has {length} tokens: at most {self.limit} leave room for the completion",
        )

    def _fit(self, ids: list[int]) -> list[int] | RowError:
        if not ids:
            return RowError(PROMPT_EMPTY, "the prompt has no tokens")
        if self.limit is None or len(ids) <= self.limit:
            return ids
        if self.on_long == "error":
            return self._refusal(len(ids))
        return ids[-self.limit :] if self.on_long == "truncate-left" else ids[: self.limit]

    def _encode_chat(self, messages: Messages) -> list[int] | RowError:
        try:
            ids = self._chat_ids(messages)
        except Exception as error:  # a chat template raises what it likes, jinja2's errors included
            return RowError(PROMPT_INVALID, f"the chat template refuses the messages: {error}")
        if self.on_long == "error" or not self._too_long(len(ids)):
            return self._fit(ids)
        return self._shorten(messages, len(ids))

    def _chat_ids(self, messages: Messages) -> list[int]:
        return self.tokenizer.encode([self.tokenizer.chat(messages)], special=False)[0]

    def _shorten(self, messages: Messages, length: int) -> list[int] | RowError:
        """Cut the longest message; the template's own tokens, the answer's start among them, stay.

        Tokens do not add up exactly where texts are joined, hence the few attempts.
        """
        assert self.limit is not None
        longest = max(range(len(messages)), key=lambda i: len(messages[i]["content"]))
        content = self.tokenizer.encode([messages[longest]["content"]], special=False)[0]
        keep = len(content) - (length - self.limit)
        for _ in range(8):
            if keep < 1:
                break
            part = content[-keep:] if self.on_long == "truncate-left" else content[:keep]
            text = self.tokenizer.decode(part, skip_special=False).strip("\ufffd")
            cut = [*messages]
            cut[longest] = {**messages[longest], "content": text}
            ids = self._chat_ids(cut)
            if not self._too_long(len(ids)):
                return ids
            keep -= len(ids) - self.limit
        return self._refusal(length)
