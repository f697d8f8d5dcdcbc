"""A model's folder and a workload's prompts as token ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def model_and_prompts(chosen: Mapping[str, Any]) -> tuple[str, list[list[int]]]:
    """The folder and the prompts of `model`, `workload`, `prompts`, `data` and `max_tokens`.

    Raises:
        ValueError: one sentence that says what is wrong and what would be right.
    """
    from transformers import AutoTokenizer

    from admg.llm import check_checkpoint
    from jobs.bench.runner import model_path
    from jobs.bench.workloads import check_workload, find_data, load_texts, tokenize

    name = check_workload(chosen["workload"])
    texts = load_texts(name, find_data(chosen.get("data")), chosen["prompts"])
    path = model_path(chosen["model"])
    config = check_checkpoint(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"--model is {path}: its tokenizer cannot be read") from error
    room = config.max_position_embeddings - chosen["max_tokens"]
    return path, tokenize(name, texts, tokenizer, room)
