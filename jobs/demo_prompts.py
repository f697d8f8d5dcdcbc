"""The demo's prompts: the interpreter's own documentation topics, which need no network."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from jobs.sources import Part, Source

MAX_CHARS = 3000
SHARDS = 4
_QUESTION = "Summarise this topic of the Python documentation in a few sentences.\n\n"
_SCHEMA = pa.schema([("id", pa.string()), ("topic", pa.string()), ("prompt", pa.string())])


def demo_source(
    limit: int | None = None, max_chars: int = MAX_CHARS, split: bool = False
) -> Source:
    """One row per topic of `pydoc_data`, or `limit` of them spread over the alphabet.

    Texts are from about 60 tokens up; longer ones than `max_chars` end after a whole paragraph,
    so that every prompt stays within a small model's context. With `split` what follows makes
    further rows, "for#2" and so on, until nothing is left.

    Raises:
        ValueError: a limit or a length that leaves nothing.
    """
    from pydoc_data.topics import topics

    if max_chars < 200:
        raise ValueError(f"--max-chars is {max_chars}: it must be at least 200")
    names = sorted(topics)
    count = len(names) if limit is None else limit
    if not 1 <= count <= len(names):
        raise ValueError(f"--limit is {count}: it must be between 1 and {len(names)} topics")
    chosen = [names[i * len(names) // count] for i in range(count)]
    rows = [
        {
            "id": name if number == 1 else f"{name}#{number}",
            "topic": topics[name].strip().splitlines()[0],
            "prompt": _QUESTION + part,
        }
        for name in chosen
        for number, part in enumerate(_parts(topics[name].strip(), max_chars, split), start=1)
    ]

    def tables() -> Iterator[pa.Table]:
        yield pa.Table.from_pylist(rows, schema=_SCHEMA)

    return Source(_SCHEMA, [Part("topics", tables)])


def _parts(text: str, max_chars: int, split: bool) -> Iterator[str]:
    while text:
        part = shorten(text, max_chars)
        yield part
        text = text[len(part) :].strip() if split else ""


def shorten(text: str, length: int) -> str:
    """The paragraphs that fit into `length` characters, at least one, cut if it alone is longer."""
    if len(text) <= length:
        return text
    end = text.rfind("\n\n", 0, length)
    return text[: end if end > length // 2 else length].rstrip()
