"""Our engine as a system: plain decoding and every drafter."""

from __future__ import annotations

import gc
import time
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from admg.checkpoint import load_dtype
from admg.config import EngineConfig, SamplingParams
from admg.engine import Engine
from admg.kv_arena import SLOT_GRAIN, bytes_per_slot
from admg.model import Transformer
from admg.request import Completion, Request
from jobs.bench.probe import synchronize
from jobs.bench.systems import System, draft_config

WARM_UP_TOKENS = 8


class Ours:
    """Answers a worker's requests with `admg`."""

    def load(self, request: dict[str, Any]) -> dict[str, str]:
        """Load the model."""
        torch.set_num_threads(request["threads"])
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = load_dtype(request["dtype"], device)
        self._draft = draft_config(System(**request["system"]))
        self._load = partial(
            Transformer.load,
            request["model"],
            dtype=dtype,
            device=device,
            low_bit=self._draft.low_bit,
        )
        self._model = self._load()
        self._engine: Engine | None = None
        return {}

    def prepare(self, cell: dict[str, Any]) -> None:
        """An engine whose arena holds a full batch of the longest sequences; warm it up."""
        self._engine = None  # its arena is freed before the next one is made
        gc.collect()  # parts of an engine know each other
        if self._draft.low_bit is not None and self._model.low_bit is None:
            self._model = self._load()  # the last cell's controller had no use for small weights
        prompts, batch = cell["prompts"], min(cell["batch"], len(cell["prompts"]))
        length = max(len(p) for p in prompts) + cell["max_tokens"]
        slots = batch * -(-length // SLOT_GRAIN) * SLOT_GRAIN
        config = EngineConfig(
            max_num_seqs=batch,
            max_model_len=length,
            kv_budget_bytes=slots * bytes_per_slot(self._model.config, self._model.dtype),
            draft=self._draft,
        )
        self._cell = cell
        self._engine = Engine(self._model, config, eos_token_ids=[])
        # The drafters' calibration is part of the first step.
        self._decode(prompts[:batch], min(WARM_UP_TOKENS, cell["max_tokens"]))

    def run(self) -> dict[str, Any]:
        """Decode all prompts of the cell."""
        synchronize()
        assert self._engine is not None
        before = self._engine.counters
        start = time.perf_counter()
        done, rounds = self._decode(self._cell["prompts"], self._cell["max_tokens"])
        synchronize()
        seconds = time.perf_counter() - start
        stats, after = [c.stats for c in done], self._engine.counters
        explanation = self._engine.explain()
        return {
            "explanation": None if explanation is None else asdict(explanation),
            "seconds": seconds,
            "sequences": len(done),
            "prompt_tokens": sum(s.prompt_tokens for s in stats),
            "completion_tokens": sum(s.completion_tokens for s in stats),
            "prefill_seconds": after.prefill_seconds - before.prefill_seconds,
            "draft_seconds": after.draft_seconds - before.draft_seconds,
            "verify_seconds": after.verify_seconds - before.verify_seconds,
            "passes": sum(s.num_spec_steps for s in stats),
            "rounds": rounds,
            "drafted": sum(s.num_draft_tokens for s in stats),
            "accepted": sum(s.num_accepted_draft_tokens for s in stats),
            "dropped": sum(len(s.dropped_attention_layers) for s in stats) / len(stats),
        }

    def _decode(self, prompts: list[list[int]], tokens: int) -> tuple[list[Completion], int]:
        """Completions of exactly `tokens` tokens, and the number of decoding passes."""
        engine = self._engine
        assert engine is not None
        sampling = SamplingParams(
            max_tokens=tokens, temperature=self._cell["temperature"], ignore_eos=True
        )
        for i, prompt in enumerate(prompts):
            engine.submit(Request(prompt, sampling, key=str(i)))
        done: list[Completion] = []
        rounds, before = 0, engine.counters.num_spec_steps
        while engine.has_work:
            done += engine.step()
            after = engine.counters.num_spec_steps
            rounds += after > before
            before = after
        wrong = next((c for c in done if len(c.token_ids) != tokens), None)
        if wrong is not None:
            raise RuntimeError(wrong.error_message or f"{len(wrong.token_ids)} of {tokens} tokens")
        return done, rounds
