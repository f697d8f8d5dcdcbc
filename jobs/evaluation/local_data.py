"""A task's rows from local files.

A file is JSON lines or Parquet with these columns, by the first name of each that it has:

| column | names | |
|---|---|---|
| id | id, task_id, question_id | optional; else the row's number |
| text | text, article, document, prompt | the article; of code the function's head |
| reference | reference, highlights, summary, canonical_solution | the summary; of code a solution |
| test, entry_point | the same | of code only: `check(candidate)`, and the function's name |

so the files that `prepare dataset` writes are read, and those of the data sets themselves. In a
folder a task is looked up as `<task>/` (Parquet), `<task>.parquet`, `<task>.jsonl`, and then under
the file names of `KNOWN`. Of Spec-Bench the rows of its category `summarization` are taken.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.evaluation.tasks import Example, Task, find_task

KNOWN = {
    "cnn_dailymail": ("spec_bench.jsonl", "CNN/DailyMail articles of Spec-Bench"),
    "xsum": ("gum_cc.jsonl", "documents of GUM with one-sentence summaries, in place of XSum"),
    "humaneval": ("HumanEval.jsonl", "HumanEval"),
}
_ID = ("id", "task_id", "question_id")
_TEXT = ("text", "article", "document", "prompt")
_REFERENCE = ("reference", "highlights", "summary", "canonical_solution")
# A worked example says this much at least.
_SHOT_WORDS = 8


@dataclass(frozen=True, slots=True)
class TaskData:
    """A task's examples in a seeded order, their source, and a worked example for base models.

    The first n of them are the same whatever the count: what follows them is other data. Code has
    no worked example.
    """

    task: Task
    examples: tuple[Example, ...]
    shot: Example | None
    source: str


def load_task(name: str, data: Path | None, *, count: int | None = None, seed: int = 0) -> TaskData:
    """`count` examples of a task (None: all) from a folder or a file.

    The worked example is the shortest text of the file, and never among the others.

    Raises:
        ValueError: another task, no file, a file that lacks a column, or fewer rows than `count`.
    """
    task = find_task(name)
    file = _find(task, data)
    every = _examples(task, file)
    fitting = [e for e in every if len(e.text.split()) <= task.words]
    shot = None if task.code else worked_example(task, fitting, file)
    rest = [e for e in fitting if e is not shot]
    random.Random(seed).shuffle(rest)
    if count is not None and count > len(rest):
        raise ValueError(f"count is {count}: {file} has {len(rest)} rows for task {name}")
    source = KNOWN[name][1] if file.name == KNOWN[name][0] else file.name
    if longer := len(every) - len(fitting):
        source += f" ({longer} of {len(every)} longer than {task.words} words left out)"
    return TaskData(task, tuple(rest[:count]), shot, source)


def worked_example(task: Task, examples: Sequence[Example], source: object) -> Example:
    """The shortest of the examples, which costs the least to read again in every prompt.

    Raises:
        ValueError: none fits, or none has much of a reference.
    """
    told = [
        e
        for e in examples
        if len(e.text.split()) <= task.words and len(e.reference.split()) >= _SHOT_WORDS
    ]
    if not told:
        raise ValueError(
            f"{source} has no text of at most {task.words} words with a reference of "
            f"{_SHOT_WORDS} words or more"
        )
    return min(told, key=lambda e: (len(e.text), e.id))


def _find(task: Task, data: Path | None) -> Path:
    if data is not None and data.is_file():
        return data
    names = (task.name, f"{task.name}.parquet", f"{task.name}.jsonl", KNOWN[task.name][0])
    for place in [] if data is None else [data / name for name in names]:
        if place.is_file() or (place.is_dir() and any(place.glob("*.parquet"))):
            return place
    where = "no --data was given" if data is None else f"{data} has none of them"
    raise ValueError(
        f"task {task.name} reads {', '.join(names[1:])} or the folder {names[0]}, and {where}: "
        f"--data must be a folder with one of them or such a file (with a network, "
        f"admg-batch prepare dataset {task.dataset} --output DATA/{task.name} makes one)"
    )


def _examples(task: Task, file: Path) -> list[Example]:
    found, taken = [], set()
    for number, row in enumerate(_rows(file), start=1):
        example = read_example(task, row, f"{file}, row {number}", f"{file.stem}:{number}")
        if example.id in taken:
            raise ValueError(f"{file}, row {number} has the id {example.id!r} of an earlier row")
        taken.add(example.id)
        found.append(example)
    return found


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    if file.is_dir() or file.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            yield from pq.read_table(file).to_pylist()
        except pa.ArrowException as error:
            raise ValueError(f"{file} cannot be read as Parquet: {error}") from error
        return
    yield from (
        _spec_bench(_json_lines(file)) if file.name == "spec_bench.jsonl" else _json_lines(file)
    )


def _json_lines(file: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as JSON lines: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{file}, line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{file}, line {number} is no JSON object")
        yield row


def _spec_bench(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        if row.get("category") == "summarization":
            text = row["turns"][0].removeprefix("Summarize:").strip()
            yield {"id": row["question_id"], "text": text, "reference": row["reference"]}


def read_example(task: Task, row: Mapping[str, Any], place: str, name: str) -> Example:
    """A row's values by the first of their names; `name` is its id where it has none.

    Raises:
        ValueError: a column is missing or empty; the sentence begins with `place`.
    """

    def value(names: tuple[str, ...]) -> Any:
        return next((row[n] for n in names if row.get(n) is not None), None)

    def text(names: tuple[str, ...]) -> str:
        found = value(names)
        if isinstance(found, list):  # several lines, or a reference in parts
            found = "\n".join(map(str, found))
        if not isinstance(found, str) or not found.strip():
            raise ValueError(f"{place} has no {names[0]}: it must have one of {', '.join(names)}")
        return found

    own = value(_ID)
    return Example(
        id=name if own is None else str(own),
        text=text(_TEXT),
        reference=text(_REFERENCE),
        test=text(("test",)) if task.code else None,
        entry_point=text(("entry_point",)) if task.code else None,
    )
