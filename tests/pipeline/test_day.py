"""Chat templates that ask for the day get the job's, spelled as `strftime` spells it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from jobs.bench.gpu.tiny_model import byte_tokenizer
from pipeline.day import with_day

FORMATS = ["%d %b %Y", "%-d %B %y", "%A, %Y-%m-%d", "100%% %H:%M", "%%d %d", "%j, %I:%M:%S %p", ""]


def rendered(template: str) -> str:
    tokenizer: Any = byte_tokenizer()
    message = [{"role": "user", "content": "hello"}]
    return str(tokenizer.apply_chat_template(message, chat_template=template, tokenize=False))


@pytest.mark.parametrize("form", FORMATS)
def test_the_day_is_spelled_as_asked(form: str) -> None:
    template = f"{{{{ strftime_now('{form}') }}}}|{{{{ messages[0].content }}}}"
    day = datetime(2026, 3, 7)
    assert rendered(with_day(template, "2026-03-07")) == f"{day.strftime(form)}|hello"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("\n  {{ bos_token }}{{ messages[0].content }}", "\n  <s>hello"),
        (
            "{% if strftime_now is defined %}\n{% set d = strftime_now('%Y') %}{% endif %}{{ d }}",
            "2026",
        ),
        (
            "{% if d is not defined %}{% set d = strftime_now('%b') %}{% endif %}{{ d.upper() }}",
            "MAR",
        ),
    ],
)
def test_all_else_is_as_the_template_has_it(template: str, text: str) -> None:
    assert rendered(with_day(template, "2026-03-07")) == text
