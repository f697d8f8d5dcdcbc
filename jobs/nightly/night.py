"""A nightly job, checked as a whole: its model, its prompt, what fits into one prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from jobs.nightly.file import NightlyFile
from jobs.nightly.prompts import DOCUMENT, has_chat, summary_prompt, tokens_around, with_stops
from jobs.params import run_config
from pipeline.config import PromptConfig, RunConfig
from pipeline.factory import EngineFactory, ModelFactory, TokenizerLike

# Tokens do not add up exactly where texts are joined.
_SLACK = 16


@dataclass(frozen=True, slots=True)
class Night:
    """A nightly job: what its file says, with the model's own part worked out.

    `base` is the configuration that all dates and stages share; its input and output are the
    folders of all dates.
    """

    file: NightlyFile
    base: RunConfig
    factory: EngineFactory
    style: Literal["chat", "few-shot"]
    budget: int | None


def night_of(
    file: NightlyFile,
    flags: dict[str, Any] | None = None,
    source: str | None = None,
    *,
    resolve_model: Callable[[RunConfig], RunConfig] = lambda config: config,
    engine_factory: EngineFactory | None = None,
) -> Night:
    """Check a nightly job as a whole: model, prompt, sizes.

    Args:
        file: the nightly job file.
        flags: options that override it.
        source: its name, for messages.
        resolve_model: puts the demo model's folder in the place of its name.
        engine_factory: what makes engines and tokenizers; None: the model's own.

    Raises:
        ValueError: one sentence that names the place, the value and what would be right.
    """
    base = resolve_model(run_config(flags or {}, file.job(), source))
    factory = engine_factory or ModelFactory.of(base)
    context = factory.check()
    tokenizer = factory.tokenizer()
    style = file.summary.style
    if style == "auto":
        style = "chat" if has_chat(tokenizer) else "few-shot"
    elif style == "chat" and not has_chat(tokenizer):
        raise ValueError(
            f"summary.style is 'chat', but model {base.model!r} has no chat template: it must be "
            "few-shot or auto"
        )
    prompt = prompt_of(file, style)
    base = replace(base, prompt=prompt, sampling=with_stops(style, base.sampling))
    return Night(file, base, factory, style, _budget(file, base, context, tokenizer))


def prompt_of(
    file: NightlyFile, style: Literal["chat", "few-shot"], column: str = DOCUMENT
) -> PromptConfig:
    """The file's prompt of a summary, made of a column."""
    own = file.summary.examples
    examples = None if own is None else [(e.text, e.summary) for e in own]
    return summary_prompt(style, file.summary.instruction, examples, column)


def _budget(
    file: NightlyFile, base: RunConfig, context: int | None, tokenizer: TokenizerLike
) -> int | None:
    """Tokens of a document that go into one prompt."""
    given = file.summary.part_tokens
    if context is None:
        return given
    around = tokens_around(base.prompt, tokenizer) + _SLACK
    room = context - base.sampling.max_tokens - around
    if given is not None and given > room:
        raise ValueError(
            f"summary.part_tokens is {given}: it must be at most {room}, which the instruction "
            f"({around} tokens) and max_tokens leave of the model's {context}"
        )
    budget = room if given is None else given
    least = 4 * base.sampling.max_tokens
    if budget < least:
        raise ValueError(
            f"max_tokens is {base.sampling.max_tokens}: summaries of parts get no shorter unless a "
            f"part has four times as many tokens, and only {budget} fit into one"
        )
    return budget
