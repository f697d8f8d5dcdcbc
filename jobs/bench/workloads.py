"""The workloads: real texts from a data folder, and the interpreter's own topics.

| workload | file | what |
|---|---|---|
| summarization | spec_bench.jsonl | news articles to summarise, about 800 tokens |
| long-summarization | gum_cc.jsonl | documents, each with the next ones up to 3,000 tokens |
| retrieval | spec_bench.jsonl | a question after retrieved passages (category rag) |
| code | HumanEval.jsonl | functions to complete |
| chat | spec_bench.jsonl | first turns of the multi-turn categories |
| demo | none | topics of the Python documentation to summarise |
| copying | none | the same topics, said twice: the second time breaks off after a quarter |
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

LONG_TOKENS = 3000
# Room for the chat template, and for a cut text that takes a few tokens more when read again.
_MARGIN = 64
_CHAT = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
_LONG_QUESTION = "Summarise these documents in a few sentences.\n\n"
# More than LONG_TOKENS of English in any vocabulary of a usual size; what is too much is cut.
_LONG_CHARS = 6 * LONG_TOKENS

T = TypeVar("T")
Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Workload:
    """Where a workload's texts come from.

    `raw` texts are completed as they stand; others go into the model's chat template, if it has
    one. `cut` texts are shortened to `LONG_TOKENS`.
    """

    file: str | None
    texts: Callable[[Rows], list[str]]
    raw: bool = False
    cut: bool = False


def _turns(*categories: str) -> Callable[[Rows], list[str]]:
    def texts(rows: Rows) -> list[str]:
        return [row["turns"][0] for row in rows if row["category"] in categories]

    return texts


def joined(texts: Sequence[str], length: int) -> list[str]:
    """Every text with as many of the next ones as make `length` characters, if all together do."""
    found = []
    for first in range(len(texts)):
        parts, size = [], 0
        for text in [*texts[first:], *texts[:first]]:
            parts.append(text)
            size += len(text)
            if size >= length:
                break
        found.append("\n\n".join(parts))
    return found


def _demo(rows: Rows) -> list[str]:
    from jobs.demo_prompts import demo_source

    tables = [table for part in demo_source().parts for table in part.tables()]
    return [text for table in tables for text in table["prompt"].to_pylist()]


def _copying(rows: Rows) -> list[str]:
    return [f"{text}\n\n{text[: len(text) // 4]}" for text in _demo(rows)]


WORKLOADS: dict[str, Workload] = {
    "summarization": Workload("spec_bench.jsonl", _turns("summarization")),
    "long-summarization": Workload(
        "gum_cc.jsonl",
        lambda rows: joined([row["article"] for row in rows], _LONG_CHARS),
        cut=True,
    ),
    "retrieval": Workload("spec_bench.jsonl", _turns("rag")),
    "code": Workload("HumanEval.jsonl", lambda rows: [r["prompt"] for r in rows], raw=True),
    "chat": Workload("spec_bench.jsonl", _turns(*_CHAT)),
    "demo": Workload(None, _demo),
    "copying": Workload(None, _copying, raw=True),
}


def find_data(data: Path | None) -> Path | None:
    """The data folder: as given, else `../shared/data` beside the checkout if there is one."""
    if data is not None:
        return data
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    return beside if beside.is_dir() else None


def check_workload(name: str) -> str:
    """The name itself.

    Raises:
        ValueError: there is no such workload.
    """
    if name not in WORKLOADS:
        near = difflib.get_close_matches(name, WORKLOADS, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"--workload is {name!r}: it must be one of {', '.join(WORKLOADS)}{hint}")
    return name


def load_texts(name: str, data: Path | None, count: int) -> list[str]:
    """`count` texts of a workload, spread over its file.

    Raises:
        ValueError: the file is missing or not what it should be, or has fewer texts.
    """
    workload = WORKLOADS[name]
    try:
        texts = workload.texts(_rows(name, workload.file, data))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{workload.file} is not the file that workload {name} reads: "
            f"a line lacks {error if isinstance(error, KeyError) else 'a field'}"
        ) from error
    if count > len(texts):
        raise ValueError(f"--prompts is {count}: workload {name} has {len(texts)}")
    return spread(texts, count)


def _rows(name: str, file: str | None, data: Path | None) -> Rows:
    if file is None:
        return []
    if data is None or not (data / file).is_file():
        where = f"{data} has none" if data is not None else "no --data was given"
        raise ValueError(
            f"workload {name} reads {file} and {where}: --data must be a folder that holds it "
            "(workload demo needs no file)"
        )
    try:
        lines = (data / file).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise ValueError(f"{data / file} cannot be read as JSON lines: {error}") from error


def spread(items: Sequence[T], count: int) -> list[T]:
    """`count` of the items, evenly spread, in their order."""
    return [items[i * len(items) // count] for i in range(count)]


def tokenize(name: str, texts: Iterable[str], tokenizer: Any, limit: int) -> list[list[int]]:
    """Token ids of a workload's prompts, each at most `limit` tokens.

    Raises:
        ValueError: a prompt is longer than that.
    """
    workload = WORKLOADS[name]
    if workload.cut:
        room = max(min(LONG_TOKENS, limit) - _MARGIN, 1)
        texts = [_LONG_QUESTION + _cut(text, tokenizer, room) for text in texts]
    chat = not workload.raw and tokenizer.chat_template is not None
    prompts = [_chat_ids(t, tokenizer) if chat else list(tokenizer.encode(t)) for t in texts]
    longest = max(len(p) for p in prompts)
    if longest > limit:
        raise ValueError(
            f"workload {name} has a prompt of {longest} tokens: the model has room for {limit} "
            "before --max-tokens"
        )
    return prompts


def _cut(text: str, tokenizer: Any, room: int) -> str:
    ids = tokenizer.encode(text, add_special_tokens=False)
    return text if len(ids) <= room else str(tokenizer.decode(ids[:room]))


def _chat_ids(text: str, tokenizer: Any) -> list[int]:
    message = [{"role": "user", "content": text}]
    whole = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    return list(tokenizer.encode(whole, add_special_tokens=False))
