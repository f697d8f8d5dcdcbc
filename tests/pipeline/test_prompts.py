"""Prompts from columns, and prompts that fit; what is wrong with one row stays with it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import OnLong, PromptConfig
from pipeline.errors import RowError
from pipeline.prompts import NOT_UNICODE, PromptBuilder, PromptEncoder
from tests.pipeline.standin import ByteTokenizer

RAW = PromptConfig()
CHAT = PromptConfig(mode="chat")
TEMPLATE = PromptConfig(mode="template", template="{a}-{n}")


def build(config: PromptConfig, **row: Any) -> str | RowError:
    return PromptBuilder(config).build(row)


def encoder(limit: int | None, on_long: OnLong = "error", chat: bool = False) -> PromptEncoder:
    return PromptEncoder(ByteTokenizer(), chat, on_long, limit)


def chat_prompt(*contents: str) -> str:
    built = PromptBuilder(CHAT).build(
        {"prompt": [{"role": "user", "content": c} for c in contents]}
    )
    assert isinstance(built, str)
    return built


def test_raw_and_template() -> None:
    assert build(RAW, prompt=" as it stands\n") == " as it stands\n"
    assert build(TEMPLATE, a="x", n=3) == "x-3"


@pytest.mark.parametrize(
    ("config", "row", "code"),
    [
        (RAW, {"prompt": None}, "prompt_null"),
        (RAW, {"prompt": ""}, "prompt_empty"),
        (RAW, {"prompt": " \n"}, "prompt_empty"),
        (RAW, {"prompt": NOT_UNICODE}, "invalid_unicode"),
        (TEMPLATE, {"a": "x", "n": None}, "prompt_null"),
        (TEMPLATE, {"a": NOT_UNICODE, "n": None}, "invalid_unicode"),
        (CHAT, {"prompt": []}, "prompt_empty"),
        (CHAT, {"prompt": [{"role": "user", "content": ""}]}, "prompt_empty"),
        (CHAT, {"prompt": [{"role": None, "content": "x"}]}, "prompt_invalid"),
        (CHAT, {"prompt": [{"role": "user", "content": None}]}, "prompt_invalid"),
        (CHAT, {"prompt": [None]}, "prompt_invalid"),
    ],
)
def test_bad_rows_have_codes(config: PromptConfig, row: dict[str, Any], code: str) -> None:
    error = build(config, **row)
    assert isinstance(error, RowError)
    assert error.code == code


def test_chat_takes_text_messages_and_templates() -> None:
    user = {"content": "hi", "role": "user"}
    system = {"content": "be brief", "role": "system"}
    briefly = PromptConfig(mode="chat", system="be brief")
    filled = PromptConfig(mode="chat", template="{a}{b}")

    def messages(built: str | RowError) -> Any:
        assert isinstance(built, str)
        return json.loads(built)

    assert messages(build(CHAT, prompt="hi")) == [user]
    assert messages(build(CHAT, prompt=[{**user, "name": None}])) == [user]
    assert messages(build(briefly, prompt=[user])) == [system, user]
    assert messages(build(briefly, prompt=[{**system, "content": "own"}, user]))[0] == {
        "content": "own",
        "role": "system",
    }
    assert messages(build(filled, a="h", b="i")) == [user]


@pytest.mark.parametrize(
    ("on_long", "ids"),
    [("truncate-left", [99, 100]), ("truncate-right", [256, 97])],
)
def test_long_prompts_are_cut_at_the_end_that_is_named(on_long: OnLong, ids: list[int]) -> None:
    assert encoder(2, on_long).encode(["abcd", "a"]) == [ids, [256, 97]]


def test_long_prompts_are_errors_that_say_how_long() -> None:
    fits, error = encoder(4).encode(["abc", "abcd"])
    assert fits == [256, 97, 98, 99]
    assert error == RowError(
        "prompt_too_long", "the prompt has 5 tokens: at most 4 leave room for the completion"
    )
    assert encoder(None).encode(["a" * 9999])[0] == [256] + [97] * 9999


def test_chat_keeps_the_template_whole_when_it_cuts() -> None:
    prompt = chat_prompt("short", "0123456789")
    limit = len("<user>short<user>0123<assistant>")
    for on_long, kept in (("truncate-left", "6789"), ("truncate-right", "0123")):
        (ids,) = encoder(limit, on_long, chat=True).encode([prompt])  # type: ignore[arg-type]
        assert isinstance(ids, list)
        assert bytes(ids).decode() == f"<user>short<user>{kept}<assistant>"
    (error,) = encoder(20, "truncate-left", chat=True).encode([prompt])
    assert isinstance(error, RowError)
    assert error.code == "prompt_too_long"


@given(st.text(min_size=1).filter(str.strip), st.integers(1, 80))
def test_cut_chats_fit_and_end_as_the_template_does(text: str, limit: int) -> None:
    (ids,) = encoder(limit, "truncate-right", chat=True).encode([chat_prompt(text)])
    if isinstance(ids, RowError):
        assert limit < len(b"<user><assistant>") + 4  # room for one character of any length
    else:
        assert len(ids) <= limit
        assert bytes(ids).endswith(b"<assistant>")


def test_a_chat_template_that_refuses_is_an_error_row() -> None:
    prompts = [json.dumps([{"role": "wizard", "content": "x"}]), chat_prompt("x")]
    error, ids = encoder(None, chat=True).encode(prompts)
    assert error == RowError(
        "prompt_invalid", "the chat template refuses the messages: unknown role"
    )
    assert isinstance(ids, list)
