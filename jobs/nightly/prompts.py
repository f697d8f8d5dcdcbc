"""Prompts for summaries: a message for chat models, worked examples for base models.

Text from the job file and from documents is data: it fills a template and is never evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from admg.config import SamplingParams
from pipeline.config import PromptConfig
from pipeline.factory import TokenizerLike

DOCUMENT = "document_text"
"""The column of what is to be summarised, in the stages' own inputs."""

INSTRUCTION = (
    "Write a summary of the text below in at most three sentences. Keep to what the text says, "
    "name who and what it is about, and begin with the most important point."
)
STOPS = ("\n###", "\n\nText:")
# Told for this program; they show length and tone, and that names and numbers stay.
EXAMPLES = (
    (
        "The harbour office of Lindow began on Monday to replace the 46 lamps along the east quay. "
        "The old ones, put up in 1978, used about four times as much power and had to be repaired "
        "almost every week in winter. The work is to last until the end of March. Fishing boats "
        "can land as usual, but lorries have to take the entrance at the north gate. The town pays "
        "half of the 210,000 crowns, the port the rest.",
        "Lindow's harbour office is replacing the 46 lamps of its east quay, which date from 1978 "
        "and use four times as much power as new ones. Until the end of March lorries have to use "
        "the north gate. Town and port share the cost of 210,000 crowns.",
    ),
    (
        "Re: print queue on floor 2. Since the update on Thursday jobs from the accounting "
        "computers stay in the queue with the state 'waiting'. Restarting the service helps for "
        "about an hour. I compared the settings with floor 3, where all is well: there the driver "
        "is version 8.2, here the update has put in 8.3. I went back to 8.2 on two computers this "
        "morning and neither has had a stuck job since. Unless somebody objects I will do the same "
        "on the other nine tomorrow. Maren",
        "Print jobs from accounting on floor 2 have been stuck since Thursday's update, which "
        "brought in driver version 8.3. Going back to 8.2 has helped on two computers, and Maren "
        "plans to do so on the other nine tomorrow.",
    ),
)


def has_chat(tokenizer: TokenizerLike) -> bool:
    """Whether the model comes with a chat template."""
    try:
        tokenizer.chat([{"role": "user", "content": "Hello"}])
    except ValueError:  # what transformers says where there is none
        return False
    return True


def summary_prompt(
    style: Literal["chat", "few-shot"],
    instruction: str | None = None,
    examples: Sequence[tuple[str, str]] | None = None,
    column: str = DOCUMENT,
) -> PromptConfig:
    """The prompt of a summary, made of a column."""
    told = _literal(instruction or INSTRUCTION)
    field = f"{{{column}}}"
    if style == "chat":
        return PromptConfig(column, mode="chat", template=f"{told}\n\nText:\n{field}")
    shown = "".join(
        f"Text:\n{_literal(text)}\n\nSummary:\n{_literal(summary)}\n\n###\n\n"
        for text, summary in (EXAMPLES if examples is None else examples)
    )
    template = f"{told}\n\n###\n\n{shown}Text:\n{field}\n\nSummary:\n"
    return PromptConfig(column, mode="template", template=template)


def with_stops(style: Literal["chat", "few-shot"], sampling: SamplingParams) -> SamplingParams:
    """The law with the strings that end a worked example, where there are any."""
    if style == "chat":
        return sampling
    return replace(sampling, stop=tuple(dict.fromkeys((*STOPS, *sampling.stop))))


def tokens_around(prompt: PromptConfig, tokenizer: TokenizerLike) -> int:
    """Tokens of the prompt of an empty document."""
    from pipeline.errors import RowError
    from pipeline.prompts import PromptBuilder, PromptEncoder

    # An empty message would be refused; one letter is at most one token too many.
    text = PromptBuilder(prompt).build({DOCUMENT: "x"})
    assert not isinstance(text, RowError)
    ids = PromptEncoder(tokenizer, prompt.mode == "chat", "error", None).encode([text])[0]
    if isinstance(ids, RowError):
        raise ValueError(f"model: its tokenizer cannot make a prompt: {ids.message}")
    return len(ids)


def _literal(text: str) -> str:
    """Text that a template shows as it stands."""
    return text.replace("{", "{{").replace("}", "}}")
