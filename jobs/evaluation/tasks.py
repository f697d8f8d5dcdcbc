"""The three tasks of the paper's comparison: what is asked, in which form, and when it ends.

| task | what | asked of base models | ends at |
|---|---|---|---|
| cnn_dailymail | some sentences about an article | after one worked example | the next article |
| xsum | one sentence about a document | after one worked example | the next article |
| humaneval | a Python function's body | by the function's head alone | the next statement |

Chat models get an instruction instead, in their own template, and end by themselves. The form with
one example is that of Draft & Verify's notebooks (arXiv 2309.08168), which give none for code; the
stop strings of code are those of the Codex paper (arXiv 2107.03374, section 2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Form = Literal["chat", "base"]
"""A message for the model's chat template, or a text that base models go on with."""

_BLOCK = re.compile(r"```(?:[Pp]y(?:thon)?3?)?[ \t]*\n(.*?)(?:\n```|\Z)", re.S)
_NEXT_ARTICLE = ("\nArticle:", "\n\n")
_NEXT_STATEMENT = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")


@dataclass(frozen=True, slots=True)
class Example:
    """A row of a task: what is asked about, and what would be right.

    Of code `text` is the function's head with its docstring, `reference` a solution; `test` defines
    `check(candidate)`, which raises unless the function `entry_point` is right.
    """

    id: str
    text: str
    reference: str
    test: str | None = None
    entry_point: str | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked, and the data set that it is named after.

    `words` is the longest text that takes part: none is cut to fit. `max_tokens` leaves room for
    nearly every reference.
    """

    name: str
    dataset: str
    instruction: str
    base_stops: tuple[str, ...]
    max_tokens: int
    words: int
    code: bool = False

    def stops(self, form: Form) -> tuple[str, ...]:
        """The strings that end a completion."""
        return self.base_stops if form == "base" else ()

    def prompt(self, example: Example, form: Form, shot: Example | None = None) -> str:
        """The user's message, or the text to go on with, after the worked example `shot`.

        Raises:
            ValueError: a summary is asked of a base model without a worked example.
        """
        if self.code:
            asked = f"{self.instruction}\n\n```python\n{example.text.rstrip()}\n```"
            return asked if form == "chat" else example.text
        if form == "chat":
            return f"{self.instruction}\n\nArticle:\n{example.text}"
        if shot is None:
            raise ValueError(f"task {self.name} has no worked example for a base model")
        told = " ".join(shot.reference.split())
        return f"Article: {shot.text}\nSummary: {told}\nArticle: {example.text}\nSummary:"

    def answer(self, completion: str, form: Form) -> str:
        """What of a completion is scored: without its stop string, of code the first block."""
        for stop in self.stops(form):
            completion = completion.partition(stop)[0]
        if not self.code:
            return completion.strip()
        block = _BLOCK.search(completion)
        return completion if block is None or form == "base" else block[1]


TASKS: Mapping[str, Task] = {
    t.name: t
    for t in (
        Task(
            "cnn_dailymail",
            "cnn_dailymail",
            "Summarise the article below in three or four short sentences.",
            _NEXT_ARTICLE,
            max_tokens=128,
            words=1200,
        ),
        Task(
            "xsum",
            "xsum",
            "Summarise the article below in one sentence.",
            _NEXT_ARTICLE,
            max_tokens=64,
            words=800,
        ),
        Task(
            "humaneval",
            "openai_humaneval",
            "Complete the Python function below. Answer with the whole function in one code block "
            "and with nothing else.",
            _NEXT_STATEMENT,
            max_tokens=512,
            words=1200,
            code=True,
        ),
    )
}


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: another name.
    """
    if name not in TASKS:
        raise ValueError(f"task is {name!r}: it must be one of {', '.join(TASKS)}")
    return TASKS[name]


def form_of(tokenizer: Any) -> Form:
    """The form that a model is asked in: chat where it has a template for that."""
    return "base" if tokenizer.chat_template is None else "chat"


def token_ids(prompt: str, form: Form, tokenizer: Any) -> list[int]:
    """A prompt in the model's tokens, the template and what begins a text included."""
    if form == "base":
        return list(tokenizer.encode(prompt))
    message = [{"role": "user", "content": prompt}]
    whole = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    return list(tokenizer.encode(whole, add_special_tokens=False))


def program(example: Example, answer: str) -> str:
    """The Python program that runs an example's test on an answer.

    The answer goes on where the example's text ends, unless it has the whole function itself.
    """
    assert example.test is not None and example.entry_point is not None
    head = re.search(rf"^(async )?def {re.escape(example.entry_point)}\b", answer, re.M)
    # What stands before the function, its imports and helpers, a whole answer may lack.
    before = re.split(rf"^def {re.escape(example.entry_point)}\b", example.text, flags=re.M)[0]
    whole = f"{before}\n{answer}" if head else f"{example.text}{answer}"
    return f"{whole}\n\n{example.test}\n\ncheck({example.entry_point})\n"
