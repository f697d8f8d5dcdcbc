"""A task's rows from its data set on the Hugging Face hub, for people with a network.

Revisions are fixed commits, so that everybody gets the same rows, and hold Parquet files: scripts
of others are never run here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from jobs.evaluation.local_data import read_example, worked_example
from jobs.evaluation.tasks import TASKS, Example, Form, Task

if TYPE_CHECKING:
    from jobs.sources import Source

# Rows that are shuffled together: more than any of the test splits has.
_BUFFER = 20_000
_REPORT_EVERY = 2_000


@dataclass(frozen=True, slots=True)
class HubDataset:
    """Where a data set is, and in which state."""

    place: str
    subset: str | None
    revision: str


HUB = {
    "cnn_dailymail": HubDataset(
        "abisee/cnn_dailymail", "3.0.0", "96df5e686bee6baa90b8bee7c28b81fa3fa6223d"
    ),
    "xsum": HubDataset("EdinburghNLP/xsum", None, "7d4d486c2f8ef850b1a11aead99b894ff3dd7da9"),
    "openai_humaneval": HubDataset(
        "openai/openai_humaneval", "openai_humaneval", "7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544"
    ),
}


def task_source(
    name: str,
    *,
    split: str,
    form: Form,
    seed: int = 0,
    limit: int | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Source:
    """`limit` rows of a data set (None: all) in a seeded order, with the prompts of a task.

    The columns: id, prompt (in that form), text, reference, and of code test and entry_point.

    Raises:
        ValueError: the data set cannot be loaded, a seed or a limit out of range.
    """
    import pyarrow as pa

    from jobs.sources import Part, Source

    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed is {seed}: it must be between 0 and 4294967295")
    if limit is not None and limit < 1:
        raise ValueError(f"--limit is {limit}: it must be at least 1")
    task = next(t for t in TASKS.values() if t.dataset == name)
    shown = form == "base" and not task.code
    wanted = None if limit is None else limit + shown
    every = _rows(name, split, seed)
    examples = list(islice(_examples(task, every, name, report), wanted))
    shot = worked_example(task, examples, name) if shown else None
    rows = [_row(task, e, form, shot) for e in examples if e is not shot]
    if not rows:
        raise ValueError(f"the split {split!r} of {name} has no rows")
    table = pa.Table.from_pylist(rows)
    return Source(table.schema, [Part(name, lambda: iter([table]))])


def _examples(
    task: Task, rows: Iterator[dict[str, Any]], name: str, report: Callable[[str], None]
) -> Iterator[Example]:
    """The rows that have all that the task needs; a few of these data sets have no text."""
    lacking = 0
    for number, row in enumerate(rows, start=1):
        try:
            yield read_example(task, row, f"{name}, row {number}", f"{name}:{number}")
        except ValueError as error:
            lacking += 1
            report(f"Left out: {error} ({lacking} so far)")
        if number % _REPORT_EVERY == 0:
            report(f"{number:,} rows of {name}")


def _row(task: Task, example: Example, form: Form, shot: Example | None) -> dict[str, str]:
    own = {key: value for key, value in asdict(example).items() if value is not None}
    return {"id": own.pop("id"), "prompt": task.prompt(example, form, shot), **own}


def _rows(name: str, split: str, seed: int) -> Iterator[dict[str, Any]]:
    import datasets

    datasets.disable_progress_bars()
    hub = HUB[name]
    try:
        loaded = datasets.load_dataset(
            hub.place, hub.subset, revision=hub.revision, split=split, streaming=True
        )
        yield from loaded.shuffle(seed=seed, buffer_size=_BUFFER)
    except Exception as error:  # the hub, fsspec and every reader raise kinds of their own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        task = next(t.name for t in TASKS.values() if t.dataset == name)
        raise ValueError(
            f"the data set {hub.place} cannot be loaded: {reason}; without a network a file "
            f"{task}.jsonl or {task}.parquet does instead, in a folder that --data of bench paper "
            "names"
        ) from error
