"""Small data folders for the paper's comparison: made-up texts in the files' own columns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WORDS = ["sun", "rain", "port", "night", "letter", "seven", "green", "stone", "river", "lamp"]


def _text(start: int, words: int) -> str:
    return " ".join(WORDS[(start * 3 + i * i) % len(WORDS)] for i in range(words))


def write_data(folder: Path, rows: int = 6) -> Path:
    """The three files, with as many rows each."""
    files: Mapping[str, Sequence[Mapping[str, Any]]] = {
        "spec_bench.jsonl": [
            {
                "question_id": i,
                "category": "summarization",
                "turns": [f"Summarize: {_text(i, 9 + i)}"],
                "reference": [_text(i, 8)],
            }
            for i in range(rows)
        ],
        "gum_cc.jsonl": [
            {"id": f"doc{i}", "article": _text(i + 20, 10 + i), "summary": _text(i + 20, 8)}
            for i in range(rows)
        ],
        "HumanEval.jsonl": [
            {
                "task_id": f"Made/{i}",
                "prompt": f'def add{i}(x):\n    """Add {i}."""\n',
                "canonical_solution": f"    return x + {i}\n",
                "test": f"def check(candidate):\n    assert candidate(1) == {i + 1}\n",
                "entry_point": f"add{i}",
            }
            for i in range(rows)
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / name).write_text(text, encoding="utf-8")
    return folder
