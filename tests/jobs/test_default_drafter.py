"""Who drafts where nobody says it: what pays, or the model if its drafts are described."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.job_file import JobFile
from jobs.params import run_config

GIVEN: dict[str, Any] = {"input": ["in"], "output": "out", "model": "demo"}


@pytest.mark.parametrize(
    ("options", "drafter"),
    [
        ({}, "auto"),
        ({"draft_tokens": 6, "lookup_store_tokens": 128}, "auto"),
        ({"window_share": "auto"}, "auto"),
        ({"drop_layers": 4}, "admg"),
        ({"drop_mlps": [3]}, "admg"),
        ({"window_share": 0.5}, "admg"),
        ({"exit_threshold": 0.6}, "admg"),
        ({"draft_weights": "int8"}, "admg"),
        ({"lookup_tail": 4}, "admg"),
        ({"plan": "draft-verify:llama-2-13b"}, "admg"),
        ({"drop_layers": 4, "drafter": "auto"}, "auto"),
        ({"drafter": "auto"}, "auto"),
        ({"drafter": "none"}, "none"),
    ],
)
def test_the_drafter_by_what_is_asked_for(options: dict[str, Any], drafter: str) -> None:
    assert run_config(GIVEN | options, JobFile()).engine.draft.drafter == drafter
