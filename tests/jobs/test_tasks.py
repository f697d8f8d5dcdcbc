"""The tasks of the paper's comparison: prompts, answers, ROUGE."""

from __future__ import annotations

import pytest

from jobs.evaluation.rouge import rouge_scores
from jobs.evaluation.tasks import Example, Form, find_task, form_of, program, token_ids
from tests.jobs.task_rows import CODE

TWICE = Example("0", CODE["prompt"], CODE["canonical_solution"], CODE["test"], "twice")


def runs(source: str) -> bool:
    try:
        exec(compile(source, "<test>", "exec"), {})
    except AssertionError:
        return False
    return True


def test_prompts_of_summaries() -> None:
    task = find_task("xsum")
    shot, example = Example("1", "Long ago.", "It was\nlong ago."), Example("2", "Now.", "x")
    assert task.prompt(example, "base", shot) == (
        "Article: Long ago.\nSummary: It was long ago.\nArticle: Now.\nSummary:"
    )
    asked = task.prompt(example, "chat")
    assert "one sentence" in asked and asked.endswith("\n\nArticle:\nNow.")
    with pytest.raises(ValueError, match="task xsum has no worked example"):
        task.prompt(example, "base")


def test_a_base_models_next_article_is_no_answer() -> None:
    task = find_task("cnn_dailymail")
    assert task.stops("chat") == ()
    assert task.answer(" It rains.\nArticle: More", "base") == "It rains."
    assert task.answer(" It rains.\n\nMore", "base") == "It rains."
    assert task.answer("It rains.\n\nMore", "chat") == "It rains.\n\nMore"


def test_code_is_asked_for_and_put_together() -> None:
    task = find_task("humaneval")
    assert task.prompt(TWICE, "base") == CODE["prompt"]
    assert task.answer("    return 2 * x\n\ndef more():", "base") == "    return 2 * x\n"
    assert f"```python\n{CODE['prompt'].rstrip()}\n```" in task.prompt(TWICE, "chat")


@pytest.mark.parametrize(
    ("completion", "form", "right"),
    [
        ("    return 2 * x\n", "base", True),
        ("    return 3 * x\n", "base", False),
        ("    y = x\n    return x + y\nprint(twice(2))", "base", True),
        ("Sure:\n```python\ndef twice(x):\n    return 2 * x\n```\nDone.", "chat", True),
        ("```\ndef twice(x):\n    return math.trunc(x * 2)\n```", "chat", True),
        ("```py\nimport math\n\ndef twice(x):\n    return 3 * x\n", "chat", False),
        ("def twice(x):\n    return 2 * x", "chat", True),
        ("    return 2 * x", "chat", True),
    ],
)
def test_programs_of_answers(completion: str, form: Form, right: bool) -> None:
    answer = find_task("humaneval").answer(completion, form)
    assert runs(program(TWICE, answer)) is right


class _Tokenizer:
    """Encodes to the text itself."""

    def __init__(self, chat_template: str | None) -> None:
        self.chat_template = chat_template

    def encode(self, text: str, add_special_tokens: bool = True) -> list[str]:
        return [*(["<s>"] if add_special_tokens else []), *text]

    def apply_chat_template(self, messages: list[dict[str, str]], **_: object) -> str:
        return f"[{messages[0]['content']}]"


def test_the_form_is_the_models() -> None:
    base, chat = _Tokenizer(None), _Tokenizer("{{ }}")
    assert (form_of(base), form_of(chat)) == ("base", "chat")
    # A template says itself where the text begins.
    assert token_ids("ab", "base", base) == ["<s>", "a", "b"]
    assert token_ids("ab", "chat", chat) == ["[", "a", "b", "]"]


def test_rouge_by_hand() -> None:
    # Words: the cat sat on the mat / the cats sat quietly on a mat; stemmed "cats" is "cat".
    (score,) = rouge_scores(["The cat sat on the mat."], ["the cats sat quietly on a mat"])
    # Pairs in common: the cat, cat sat: 2 of 5 and of 6. In order: the cat sat on mat: 5 of 6, 7.
    assert score.rouge2 == pytest.approx(2 * (2 / 5) * (2 / 6) / (2 / 5 + 2 / 6))
    assert score.rouge_l == pytest.approx(2 * (5 / 6) * (5 / 7) / (5 / 6 + 5 / 7))
    same, none = rouge_scores(["a b c", ""], ["a b c", "a b c"])
    assert (same.rouge2, same.rouge_l, none.rouge2, none.rouge_l) == (1, 1, 0, 0)
    with pytest.raises(ValueError):
        rouge_scores(["a"], [])
