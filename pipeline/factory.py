"""What the data plane needs of an engine and a tokenizer, and the default: admg's own.

A factory is a small picklable value. The driver asks it for the model's identity and context
length; each Decode actor builds its engine with it; the Tokenize and Detokenize stages take the
tokenizer. Tests put a fast deterministic engine in the model's place through the same five calls.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from admg.config import EngineConfig
from admg.explanation import Explanation
from admg.request import Completion, Request
from admg.stats import EngineCounters
from pipeline.config import Dtype, RunConfig
from pipeline.day import asks_for_day, with_day
from pipeline.fingerprint import model_identity
from pipeline.machine import usable_cores
from pipeline.made_for import MadeFor
from pipeline.retry import Patience

if TYPE_CHECKING:
    from pipeline.weights import RemoteCheckpoint


# Weights of two bytes each as float32, beside the files that they are read from.
_LOADING = 3


class TokenizerLike(Protocol):
    """Text to token ids and back."""

    def encode(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        """Token ids of each text, with the model's own first and last tokens if `special`."""

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Messages through the model's chat template, ready for the answer."""

    def decode(self, token_ids: Sequence[int], skip_special: bool) -> str:
        """The text of token ids."""


class EngineLike(Protocol):
    """The part of `admg.engine.Engine` that Decode uses, always from one thread."""

    def submit(self, request: Request) -> int:
        """Queue a sequence; its handle comes back in its `Completion`."""

    def step(self) -> list[Completion]:
        """One round; any exception means that the engine is dead."""

    @property
    def has_work(self) -> bool:
        """Whether a sequence waits or runs."""

    @property
    def counters(self) -> EngineCounters:
        """Sums so far, and the sequences that run and wait now."""

    def explain(self) -> Explanation | None:
        """What its drafts are chosen by, and the choices so far; None where nothing is chosen."""


class EngineFactory(Protocol):
    """Builds engines and tokenizers wherever they are needed."""

    def check(self) -> int | None:
        """The longest sequence that the model takes (None: no limit).

        Raises:
            ValueError: this model cannot be used; cheap, before anything is loaded.
        """

    def identity(self) -> dict[str, str]:
        """What the model is, for the fingerprint."""

    def tokenizer(self) -> TokenizerLike:
        """A tokenizer for this process."""

    def build(self, max_num_seqs: int | None = None) -> EngineLike:
        """An engine for this process: loads the model. A number is a batch smaller than wanted."""


class ModelTokenizer:
    """A transformers tokenizer in the shape that the stages use.

    `date` is what a chat template that asks for the day is told (None: today).
    """

    def __init__(self, path: str, date: str | None = None) -> None:
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        self._template: str | None = None  # the tokenizer's own
        if date is not None:
            self._template = with_day(self._tokenizer.get_chat_template(), date)

    def encode(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        """Token ids of each text; `verbose` off, for over-long prompts are dealt with later."""
        encoded = self._tokenizer(list(texts), add_special_tokens=special, verbose=False)
        return cast(list[list[int]], encoded["input_ids"])

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The chat template's text."""
        rendered = self._tokenizer.apply_chat_template(
            list(messages),
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=True,
        )
        return str(rendered)

    def decode(self, token_ids: Sequence[int], skip_special: bool) -> str:
        """Text exactly as the tokens spell it."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special))


@dataclass(frozen=True, slots=True)
class ModelFactory:
    """The default: `admg.llm.LLM` on a checkpoint folder, or on one that is copied here first.

    `cpu_share` is how many actors share a machine's CPUs (None on GPUs: torch's own choice), unless
    the `threads` of each are given.
    `gpus` are those of an actor (None: not in one).
    `remote` is a model that was given by URI, as it was found; each machine copies it once.
    `made_for` is the model that it must be, if drafts were calibrated for one.
    `date` is the day that chat templates are told, where the model's asks for it.
    """

    path: str
    engine: EngineConfig
    dtype: Dtype = "auto"
    cpu_share: int | None = None
    threads: int | None = None
    gpus: float | None = None
    remote: RemoteCheckpoint | None = None
    made_for: MadeFor | None = None
    date: str | None = None

    @classmethod
    def of(cls, config: RunConfig) -> ModelFactory:
        """The factory of a run; whether actors share CPUs is known once the cluster is.

        Raises:
            ValueError: the model is given by URI, and there is none that can be used.
        """
        from pipeline.weights import local_folder, remote_checkpoint

        patience = Patience(config.storage_patience_seconds)
        remote = remote_checkpoint(config.model, patience)
        path = local_folder(config.model) if remote is None else ""
        return cls(
            path,
            config.engine,
            config.dtype,
            threads=config.threads,
            remote=remote,
            made_for=config.made_for,
        )

    def _folder(self, *, weights: bool) -> str:
        return str(self.remote.folder(weights=weights)) if self.remote else self.path

    def check(self) -> int | None:
        """The longest sequence: the model's context length, or less by what the engine is told."""
        from admg.checkpoint import checkpoint_files
        from admg.families import read_model_config
        from admg.llm import longest_sequence

        if self.remote is None and not os.path.isdir(self.path):
            raise ValueError(
                f"model is {self.path!r}: it must be a folder with a config.json, or the URI of "
                "one, as s3://bucket/folder or hf://organisation/name"
            )
        if self.made_for is not None:
            folder = self._folder(weights=False)
            layers = read_model_config(folder).num_layers
            self.made_for.check(os.path.basename(folder), layers, self.identity())
        longest = longest_sequence(self._folder(weights=False), self.engine, self.dtype)
        if self.remote is None:
            checkpoint_files(self.path)  # none, or pickled ones: found before anything is started
        return longest

    def identity(self) -> dict[str, str]:
        """Hashes of the checkpoint's small files and of samples of its weights."""
        return dict(self.remote.identity) if self.remote else model_identity(self.path)

    def tokenizer(self) -> TokenizerLike:
        """The checkpoint's tokenizer."""
        return ModelTokenizer(self._folder(weights=False), self.date)

    def weights_bytes(self) -> int:
        """Bytes of the checkpoint's weights, as they are stored."""
        if self.remote is not None:
            return self.remote.weights_bytes
        from admg.checkpoint import checkpoint_files

        return sum(file.stat().st_size for file in checkpoint_files(self.path))

    def memory_bytes(self) -> int:
        """Main memory that an engine on CPUs takes at most: while it loads, and with its cache."""
        from admg.llm import cache_bytes

        weights = _LOADING * self.weights_bytes()
        return weights + cache_bytes(self._folder(weights=False), self.engine, self.dtype)

    def is_dated(self) -> bool:
        """Whether the chat template asks for the day: its prompts are others tomorrow."""
        return asks_for_day(Path(self._folder(weights=False)))

    def build(self, max_num_seqs: int | None = None) -> EngineLike:
        """Load the model. Ray leaves one thread to an actor; decoding wants its share of all."""
        from pipeline.device import LoadingShown, device_for

        device = device_for(self.gpus)
        import torch

        from admg.llm import LLM

        threads = self.threads
        if threads is None and self.cpu_share is not None:
            threads = max(1, usable_cores() // self.cpu_share)
        if threads is not None:
            torch.set_num_threads(threads)
        engine = self.engine
        if max_num_seqs is not None:
            engine = replace(engine, max_num_seqs=max_num_seqs)
        folder, shown = self._folder(weights=True), LoadingShown()
        loaded = LLM.load(folder, engine=engine, dtype=self.dtype, device=device, on_load=shown)
        return cast(EngineLike, loaded.engine)
