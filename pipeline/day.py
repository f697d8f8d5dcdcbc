"""The day for chat templates that ask for it, which Llama's do: that of the job, not of the clock.

A run that goes on after midnight must make the same prompts. transformers gives templates
`strftime_now`, and lets nobody give them another function, so a macro of that name goes before the
template's own text.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

ASKS = "strftime_now"
# Where a checkpoint's chat template may stand.
_FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
_CODES = [f"%{code}" for code in "aAbBcdDeFfGHIjmMpRSTuUVwWxXyYzZ"]
_CODES += [f"%-{code}" for code in "dmyHIjMS"]
_PERCENT = "\0"
_MACRO = """\
{%%- macro %s(format) -%%}
{%%- set day = namespace(text=format) -%%}
{%%- for code, text in %s -%%}{%%- set day.text = day.text.replace(code, text) -%%}{%%- endfor -%%}
{{- day.text -}}
{%%- endmacro %%}
"""


def asks_for_day(folder: Path) -> bool:
    """Whether the chat template of this checkpoint asks for the day."""
    files = (folder / name for name in _FILES)
    return any(ASKS.encode() in file.read_bytes() for file in files if file.is_file())


def with_day(template: str, date: str) -> str:
    """A chat template that is told this day (as 2026-02-28), from its first minute, whenever."""
    day = datetime.fromisoformat(date)
    texts = [("%%", _PERCENT), *((code, day.strftime(code)) for code in _CODES), (_PERCENT, "%")]
    return _MACRO % (ASKS, json.dumps(texts)) + template
