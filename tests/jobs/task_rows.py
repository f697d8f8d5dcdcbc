"""Rows of tasks, as their data sets have them."""

from __future__ import annotations

TEN = "one two three four five six seven eight nine ten"
NEWS = [
    {"article": f"News {i}. " + "word " * (30 - i), "highlights": f"{TEN} {i}"} for i in range(6)
]
CODE = {
    "task_id": "HumanEval/0",
    "prompt": 'import math\n\n\ndef half(x):\n    return x / 2\n\n\ndef twice(x):\n    """2x."""\n',
    "entry_point": "twice",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(half(2)) == 2\n",
}
