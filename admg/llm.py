"""The small entry for people without Ray: a model, a tokenizer and an engine in one object.

llm = LLM.load("path/to/checkpoint")
for completion in llm.generate(["Summarise: ..."], SamplingParams(max_tokens=64)):
    print(completion.text, completion.stats.mean_acceptance_length)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from admg.checkpoint import OnLoad, load_dtype
from admg.config import EngineConfig, SamplingParams
from admg.engine import Engine
from admg.families import ModelConfig, read_model_config
from admg.kv_arena import bytes_per_slot
from admg.memory import arena_size, longest_of
from admg.model import Transformer
from admg.plan import check_count, check_layers
from admg.request import Completion, Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BOUNDLESS = 2**62


class LLM:
    """A loaded checkpoint with its tokenizer and one engine."""

    def __init__(self, engine: Engine, tokenizer: PreTrainedTokenizerBase) -> None:
        self.engine = engine
        self.tokenizer = tokenizer

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        engine: EngineConfig | None = None,
        dtype: str = "auto",
        device: str = "auto",
        on_load: OnLoad | None = None,
    ) -> LLM:
        """Load a Hugging Face folder (safetensors; nothing in it is executed).

        Args:
            path: the folder.
            engine: sizes and drafting; defaults of `EngineConfig`.
            dtype: auto, float32, bfloat16 or float16.
            device: auto (CUDA where there is one), cpu, cuda, cuda:1, ...
            on_load: is told, as weights come in, how many bytes there are of how many.

        Raises:
            ValueError: a checkpoint, a dtype or a configuration that cannot be served, by name;
                memory that does not hold one sequence of `max_model_len`, or of the model's own
                length.
        """
        from transformers import AutoTokenizer

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        engine = engine or EngineConfig()
        kind = load_dtype(dtype, device)
        shape = read_model_config(path)
        check_layers(engine.draft, shape.num_layers)
        check_count(engine.draft.drop, shape.num_layers)
        engine = _whole(engine, shape)
        arena_size(shape, kind, device, engine)  # refused before weights are read
        low_bit = engine.draft.low_bit
        model = Transformer.load(path, dtype=kind, device=device, low_bit=low_bit, on_load=on_load)
        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
        eos = set(model.config.eos_token_ids)
        if tokenizer.eos_token_id is not None:
            eos.add(tokenizer.eos_token_id)

        def detokenize(ids: list[int]) -> str:
            return str(tokenizer.decode(ids, skip_special_tokens=True))

        made = Engine(model, engine, eos_token_ids=sorted(eos), detokenize=detokenize)
        return cls(made, tokenizer)

    def generate(
        self, prompts: Iterable[str | list[int]], sampling: SamplingParams | None = None
    ) -> Iterator[Completion]:
        """Complete prompts (texts or token ids), yielding each as it finishes.

        A completion's `key` is the index of its prompt.
        """
        sampling = sampling or SamplingParams()
        requests = []
        for i, prompt in enumerate(prompts):
            ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
            requests.append(Request(ids, sampling, key=str(i)))
        return self.engine.generate(requests)


def check_checkpoint(path: str | Path) -> ModelConfig:
    """Read a checkpoint's configuration without loading its weights.

    Raises:
        ValueError: one sentence that says why the folder cannot be loaded.
    """
    return read_model_config(path)


def longest_sequence(path: str | Path, engine: EngineConfig, dtype: str = "auto") -> int:
    """Tokens of the longest sequence that an engine on this checkpoint takes, weights unread.

    It is `max_model_len`, or the model's own: never what memory holds, for which prompts are cut or
    refused must be the same wherever a job goes on. An engine whose memory does not hold one such
    sequence is refused. For who plans a run elsewhere than where it decodes: free memory is not
    looked at, and "auto" counts as bfloat16.

    Raises:
        ValueError: a checkpoint, lengths, layers to drop or a KV budget that do not go together,
            by name.
    """
    kind = torch.bfloat16 if dtype == "auto" else load_dtype(dtype, "cpu")
    if engine.kv_budget_bytes is None:
        engine = replace(engine, kv_budget_bytes=_BOUNDLESS)
    shape = read_model_config(path)
    check_layers(engine.draft, shape.num_layers)
    check_count(engine.draft.drop, shape.num_layers)
    longest = arena_size(shape, kind, "cpu", _whole(engine, shape)).max_model_len
    draft = engine.draft
    if draft.drafter != "none" and draft.draft_tokens >= longest:
        raise ValueError(
            f"draft_tokens is {draft.draft_tokens}: it must be below {longest}, the tokens of the "
            "longest sequence"
        )
    return longest


def cache_bytes(path: str | Path, engine: EngineConfig, dtype: str = "auto") -> int:
    """Bytes of keys and values that an engine on CPUs has room for, as much is free now.

    Raises:
        ValueError: a KV budget, or lengths, that do not go together.
    """
    shape, kind = read_model_config(path), load_dtype(dtype, "cpu")
    return arena_size(shape, kind, "cpu", engine).num_slots * bytes_per_slot(shape, kind)


def _whole(engine: EngineConfig, shape: ModelConfig) -> EngineConfig:
    """With sequences as long as the model's, unless it is said how long they may be."""
    return replace(engine, max_model_len=engine.max_model_len or longest_of(shape))
