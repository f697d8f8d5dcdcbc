"""The tasks of a run, from their data: prompts that fit, stops of the form asked, scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jobs.bench.paper.settings import Settings
from jobs.bench.paper.tasks import Score, Task
from jobs.bench.workloads import find_data
from jobs.evaluation.local_data import load_task
from jobs.evaluation.tasks import form_of, token_ids

if TYPE_CHECKING:
    from jobs.evaluation.local_data import TaskData
    from jobs.evaluation.sandbox import Isolation
    from jobs.evaluation.tasks import Example, Form

TASKS = ("cnn_dailymail", "xsum", "humaneval")
_TITLES = {
    "cnn_dailymail": "summaries of news (CNN/DM)",
    "xsum": "one-sentence summaries (XSum-style)",
    "humaneval": "code (HumanEval)",
}


def load_tasks(settings: Settings, tokenizer: Any, limit: int) -> dict[str, Task]:
    """Prompts of each task, apart from those that drafters are calibrated on.

    Args:
        limit: the longest sequence of the model, in tokens.

    Raises:
        ValueError: no data, too few texts that fit, by task, or a sandbox that is not possible.
    """
    if settings.run_code is not None and "humaneval" in settings.tasks:
        from jobs.evaluation.sandbox import check_isolation

        check_isolation(settings.run_code)
    data = find_data(settings.data)
    form = form_of(tokenizer)
    found = {}
    for name in settings.tasks:
        rows = load_task(name, data, seed=settings.seed)
        tokens = settings.sizes.whole[name]
        wanted = settings.sizes.prompts + settings.sizes.held_out
        examples, ids = _fitting(rows, form, tokenizer, limit - tokens, wanted)
        first = settings.sizes.prompts
        metrics: tuple[str, ...] = ("ROUGE-2", "ROUGE-L")
        score = _summaries(rows, form, examples)
        if rows.task.code:
            metrics = ("pass@1",) if settings.run_code is not None else ()
            score = _code(rows, form, examples, settings.run_code)
        found[name] = Task(
            name,
            _TITLES[name],
            f"{rows.source}, {'chat template' if form == 'chat' else _base(rows)}",
            ids[:first],
            ids[first:],
            tokens,
            min(tokens, settings.sizes.tokens[name]),
            rows.task.stops(form),
            metrics,
            score,
        )
    return found


def _base(rows: TaskData) -> str:
    return "no example" if rows.task.code else "one worked example"


def _fitting(
    rows: TaskData, form: Form, tokenizer: Any, room: int, wanted: int
) -> tuple[list[Example], list[list[int]]]:
    examples, ids = [], []
    for example in rows.examples:
        prompt = token_ids(rows.task.prompt(example, form, rows.shot), form, tokenizer)
        if 1 < len(prompt) <= room:
            examples.append(example)
            ids.append(prompt)
        if len(ids) == wanted:
            return examples, ids
    raise ValueError(
        f"--prompts and --held-out ask for {wanted} texts of {rows.task.name}: "
        f"{rows.source} has {len(ids)} that fit into the model"
    )


def _summaries(rows: TaskData, form: Form, examples: Sequence[Example]) -> Score:
    def score(texts: Sequence[str]) -> dict[str, list[float]]:
        from jobs.evaluation.rouge import rouge_scores

        answers = [rows.task.answer(text, form) for text in texts]
        told = rouge_scores(answers, [e.reference for e in examples[: len(texts)]])
        return {"ROUGE-2": [r.rouge2 for r in told], "ROUGE-L": [r.rouge_l for r in told]}

    return score


def _code(
    rows: TaskData, form: Form, examples: Sequence[Example], isolation: Isolation | None
) -> Score:
    known: dict[tuple[int, str], float] = {}  # lossless drafters all say the same

    def score(texts: Sequence[str]) -> dict[str, list[float]]:
        from jobs.evaluation.code_tests import run_tests

        if isolation is None:
            return {}
        new = [(i, text) for i, text in enumerate(texts) if (i, text) not in known]
        asked = [examples[i] for i, _ in new]
        answers = [rows.task.answer(text, form) for _, text in new]
        ended = run_tests(asked, answers, isolation) if new else []
        for place, outcome in zip(new, ended, strict=True):
            known[place] = float(outcome.status == "passed")
        return {"pass@1": [known[i, text] for i, text in enumerate(texts)]}

    return score
