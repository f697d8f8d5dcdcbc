"""transformers as systems: padded `generate`, prompt lookup, and continuous batching.

All decode exactly `max_tokens` tokens: no EOS id is configured, so none stops a sequence, as with
`ignore_eos` elsewhere. Attention is sdpa, the cache is on.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from jobs.bench.probe import synchronize

WARM_UP_TOKENS = 8
PREFILL_TOKENS = 1024
PAGE_TOKENS = 256
LOOKUP_TOKENS = 10
NO_TOKEN = -1


class _Transformers:
    """Loading and warming up, which all three share."""

    attention = "sdpa"

    def load(self, request: dict[str, Any]) -> dict[str, str]:
        """Load the model."""
        torch.set_num_threads(request["threads"])
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._options = request["system"]["options"]
        self._model = AutoModelForCausalLM.from_pretrained(
            request["model"],
            dtype=getattr(torch, request["dtype"]),
            attn_implementation=self.attention,
        )
        self._model.to(self._device).eval()
        self._model.generation_config = GenerationConfig()
        return {}

    def prepare(self, cell: dict[str, Any]) -> None:
        """One small batch, untimed."""
        self._cell = cell
        self._generate(cell["prompts"][: cell["batch"]], min(WARM_UP_TOKENS, cell["max_tokens"]))

    def run(self) -> dict[str, Any]:
        """Decode all prompts of the cell."""
        prompts, tokens = self._cell["prompts"], self._cell["max_tokens"]
        torch.manual_seed(0)
        synchronize()
        start = time.perf_counter()
        more = self._generate(prompts, tokens)
        synchronize()
        seconds = time.perf_counter() - start
        return {
            "seconds": seconds,
            "sequences": len(prompts),
            "prompt_tokens": sum(len(p) for p in prompts),
            "completion_tokens": len(prompts) * tokens,
            **more,
        }

    def _generate(self, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        raise NotImplementedError

    def _config(self, tokens: int, **more: Any) -> GenerationConfig:
        temperature = self._cell["temperature"]
        # top_k is 50 where nothing is said: the law must be the model's own.
        law: dict[str, Any] = {"do_sample": False}
        if temperature:
            law = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        config = GenerationConfig(max_new_tokens=tokens, pad_token_id=0, use_cache=True, **law)
        config.update(**more)
        return config


class Padded(_Transformers):
    """`generate` on one left-padded batch after the other.

    The batches are made in the order of the prompts, or with `order=length` longest first, which
    spares padding. The prefill is the first forward pass of each call.
    """

    def load(self, request: dict[str, Any]) -> dict[str, str]:
        """Load the model; its first pass of every call is timed."""
        loaded = super().load(request)
        self._passes = 0
        self._prefilled = 0.0
        self._model.register_forward_hook(self._after_pass)
        return loaded

    def _after_pass(self, *_: Any) -> None:
        self._passes += 1
        if self._passes == 1:
            synchronize()
            self._prefilled = time.perf_counter()

    def _generate(self, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        if self._options.get("order") == "length":
            prompts = sorted(prompts, key=len, reverse=True)
        prefill, passes, rounds = 0.0, 0, 0
        for first in range(0, len(prompts), self._cell["batch"]):
            batch = prompts[first : first + self._cell["batch"]]
            start = time.perf_counter()
            self._passes = 0
            self._one_batch(batch, tokens)
            prefill += self._prefilled - start
            rounds += self._passes - 1
            passes += (self._passes - 1) * len(batch)
        return {"prefill_seconds": prefill, "passes": passes, "rounds": rounds}

    @torch.inference_mode()
    def _one_batch(self, batch: list[list[int]], tokens: int) -> None:
        width = max(len(p) for p in batch)
        ids = [[0] * (width - len(p)) + p for p in batch]
        mask = [[0] * (width - len(p)) + [1] * len(p) for p in batch]
        output = self._model.generate(
            torch.tensor(ids, device=self._device),
            attention_mask=torch.tensor(mask, device=self._device),
            generation_config=self._config(tokens, **self._drafting()),
        )
        if output.shape[1] != width + tokens:
            raise RuntimeError(f"{output.shape[1] - width} of {tokens} tokens")

    def _drafting(self) -> dict[str, Any]:
        return {}


class Lookup(Padded):
    """`generate` with prompt lookup: n-grams of the prompt as drafts, one sequence at a time.

    Its first pass verifies a draft already, beside the prompt, so it counts as prefill.
    """

    def _drafting(self) -> dict[str, Any]:
        return {"prompt_lookup_num_tokens": self._options.get("tokens", LOOKUP_TOKENS)}


class Continuous(_Transformers):
    """`generate_batch`: continuous batching over a paged cache.

    It does not tell prefill from decoding, so a run with one token each is timed as the prefill.
    """

    def _generate(self, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        batch = min(self._cell["batch"], len(self._cell["prompts"]))
        longest = max(len(p) for p in self._cell["prompts"]) + self._cell["max_tokens"]
        # Its own guess of the cache's size takes most of the memory, and half a minute to fill.
        sizes = ContinuousBatchingConfig(
            max_requests_per_batch=batch,
            max_batch_tokens=PREFILL_TOKENS,
            page_size=PAGE_TOKENS,
            num_blocks=batch * -(-longest // PAGE_TOKENS) + 1,
        )
        done = self._model.generate_batch(
            prompts,
            generation_config=self._config(tokens, eos_token_id=NO_TOKEN),
            continuous_batching_config=sizes,
        )
        wrong = [len(d.generated_tokens) for d in done.values() if d.error is not None]
        wrong += [n for d in done.values() if (n := len(d.generated_tokens)) != tokens]
        if wrong or len(done) != len(prompts):
            raise RuntimeError(
                f"generate_batch left {len(prompts) - len(done) + len(wrong)} undone"
            )
        return {}

    def run(self) -> dict[str, Any]:
        """Decode all prompts of the cell, then only their first tokens."""
        outcome = super().run()
        start = time.perf_counter()
        self._generate(self._cell["prompts"], 1)
        return outcome | {"prefill_seconds": time.perf_counter() - start}
