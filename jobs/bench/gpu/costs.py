"""The worker that times passes: an engine on made-up weights, stepped as in any run.

Contexts are filled by prefill. All sequences have the same prompt, so that the engine computes most
of it once and copies it: every sequence has keys and values of its own, and nothing is decoded to
get there. The weights are random but for what makes every token the same one (`made_up`): drafts of
any kind then have the length that was asked for, and lookup proposes as many tokens as are to be
verified, at no cost to speak of. Only whole rounds are timed, however the engine plays them.
"""

from __future__ import annotations

import gc
import math
import time
from dataclasses import dataclass
from statistics import median
from typing import Any, get_args

import torch

from admg.checkpoint import Weights, empty_weights
from admg.config import DraftConfig, EngineConfig, LowBit, SamplingParams
from admg.draft_rules import DropRule, WindowRule
from admg.engine import Engine
from admg.families import ModelConfig, parse_model_config
from admg.kv_arena import SLOT_GRAIN, bytes_per_slot
from admg.model import Transformer
from admg.request import Request
from jobs.bench.gpu.cells import FULL, Cell
from jobs.bench.memory import available_bytes
from jobs.bench.probe import synchronize
from jobs.shapes import shape_named

# Rounds before the clock runs, and groups of rounds that it runs for. Fewer in all than the rounds
# after which the engine inserts a plain one.
WARM_UP = 3
GROUPS, ROUNDS = 5, 4
# The token that made-up weights always say, and how much louder than chance they say it.
SAID, VOICE = 7, 8.0
# Of the free memory; the rest is for activations, and the copy of what prompts share.
MEMORY_SHARE = 0.85
# Full memory of a CPU would take all day.
_MOST_ON_CPU = 6
_CUDA_PREFILL = 8192


@dataclass(frozen=True, slots=True)
class Fit:
    """A cell on this device: sequences, and the new tokens that each has room for."""

    batch: int
    new: int
    slots: int


class Costs:
    """Answers a worker's requests."""

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Make the model; answers what it takes.

        Raises:
            ValueError: draft weights that this engine or this device does not know.
        """
        torch.set_num_threads(request["threads"])
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        kind = request["weights"]
        if kind not in ("full", *get_args(LowBit)):
            raise ValueError(f"this engine has no {kind} draft weights")
        config = parse_model_config(shape_named(request["shape"]))
        low_bit: LowBit | None = None if kind == "full" else kind
        if low_bit is not None:
            from admg.low_bit import check_low_bit

            check_low_bit(low_bit, self._device)
        start = time.perf_counter()
        weights = made_up(config, torch.bfloat16, self._device)
        self._model = Transformer(config, weights, low_bit)
        self._kind = kind
        self._engine: Engine | None = None
        synchronize()
        return {
            "seconds": time.perf_counter() - start,
            "weight_bytes": 2 * config.num_parameters,
            "draft_weight_bytes": self._model.low_bit_bytes,
        }

    def prepare(self, cell: dict[str, Any]) -> dict[str, Any]:
        """An engine with the cell's batch in the middle of decoding, or why there is none."""
        self._engine = None  # its arena is freed before the next one is made
        gc.collect()  # parts of an engine know each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._cell = Cell(**cell)
        found = self._fit(self._cell)
        if isinstance(found, str):
            return {"skipped": found}
        self._fitted = found
        config = EngineConfig(
            max_num_seqs=found.batch,
            max_model_len=self._cell.context + found.new,
            kv_budget_bytes=found.slots * self._per_slot,
            prefill_tokens=_CUDA_PREFILL if self._device == "cuda" else 1024,
            draft=draft_of(self._cell, self._model.config.num_layers),
            rounds="host" if self._cell.part == "eager" else "auto",
        )
        self._engine = Engine(self._model, config, eos_token_ids=[])
        if self._cell.part != "prefill":
            self._submit(same=True)
            for _ in range(WARM_UP):
                self._engine.step()
        else:
            self._submit(same=False)
            while self._engine.has_work:
                self._engine.step()
        synchronize()
        return {"batch": found.batch}

    def run(self) -> dict[str, Any]:
        """The cell's times."""
        return self._prefill() if self._cell.part == "prefill" else self._rounds()

    @property
    def _per_slot(self) -> int:
        return bytes_per_slot(self._model.config, self._model.dtype)

    def _fit(self, cell: Cell) -> Fit | str:
        """The cell's sizes, or why it does not fit."""
        new = (WARM_UP + GROUPS * ROUNDS) * (cell.drafts + 1) + cell.drafts + 2
        limit = self._model.config.max_position_embeddings
        if cell.context + new > limit:
            return f"{cell.context} tokens and {new} new ones: the model has {limit} positions"
        extent = -(-(cell.context + new) // SLOT_GRAIN) * SLOT_GRAIN
        free = int(MEMORY_SHARE * available_bytes()) // (extent * self._per_slot)
        batch = cell.batch
        if batch == FULL:
            batch = min(free, _MOST_ON_CPU) if self._device == "cpu" else free
        if not 0 < batch <= free:
            needed = max(batch, 1) * extent * self._per_slot
            return f"{needed / 1e9:.1f} GB of keys and values do not fit into the free memory"
        return Fit(batch, new, batch * extent)

    def _submit(self, same: bool) -> None:
        engine, cell, fit = self._engine, self._cell, self._fitted
        assert engine is not None
        random = torch.Generator().manual_seed(cell.context)
        vocab = self._model.config.vocab_size
        first = torch.randint(vocab, (cell.context,), generator=random).tolist()
        first[-8:] = [SAID] * 8
        new = fit.new if same else 1
        law = SamplingParams(max_tokens=new, ignore_eos=True)
        for i in range(fit.batch):
            prompt = first
            if not same:
                prompt = torch.randint(vocab, (cell.context,), generator=random).tolist()
            engine.submit(Request(prompt, law, key=str(i)))

    def _rounds(self) -> dict[str, Any]:
        engine = self._engine
        assert engine is not None
        seconds: list[float] = []
        before = engine.counters
        assert before.num_running == self._fitted.batch and not before.num_waiting
        for _ in range(GROUPS):
            synchronize()
            start = time.perf_counter()
            for _ in range(ROUNDS):
                engine.step()
            synchronize()
            seconds.append((time.perf_counter() - start) / ROUNDS)
        after, rounds = engine.counters, GROUPS * ROUNDS
        if after.num_running != self._fitted.batch:
            raise RuntimeError("sequences ended while they were timed")
        drafted = after.num_draft_tokens - before.num_draft_tokens
        if drafted != self._cell.drafts * rounds * self._fitted.batch:
            raise RuntimeError(f"{drafted} draft tokens in {rounds} rounds")
        committed = after.completion_tokens - before.completion_tokens
        return {
            "batch": self._fitted.batch,
            # Where the contexts stood in the middle of what was timed.
            "context": self._cell.context + round(committed / self._fitted.batch / 2) + WARM_UP,
            "round_seconds": median(seconds),
            "round_low": min(seconds),
            "round_high": max(seconds),
            "tokens_per_round": committed / rounds / self._fitted.batch,
        }

    def _prefill(self) -> dict[str, Any]:
        engine = self._engine
        assert engine is not None
        times = []
        for _ in range(3):
            self._submit(same=False)
            synchronize()
            start = time.perf_counter()
            while engine.has_work:
                engine.step()
            synchronize()
            times.append(time.perf_counter() - start)
        return {
            "batch": self._fitted.batch,
            "context": self._cell.context,
            "round_seconds": median(times),
            "round_low": min(times),
            "round_high": max(times),
        }


def draft_of(cell: Cell, num_layers: int) -> DraftConfig:
    """How the engine drafts in a cell; what a verification verifies is looked up."""
    if not cell.drafts:
        return DraftConfig(drafter="none")
    if cell.part == "verify":
        return DraftConfig(drafter="ngram", draft_tokens=cell.drafts, lookup_store_tokens=0)
    dropped = min(cell.dropped, num_layers - 2)
    return DraftConfig(
        draft_tokens=cell.drafts,
        drop=DropRule(attention=spread(dropped, num_layers)),
        windows=WindowRule(share=cell.share) if cell.share else None,
        draft_weights=cell.weights,  # type: ignore[arg-type]
    )


def spread(count: int, num_layers: int) -> tuple[int, ...]:
    """`count` layers, evenly over all but the first and the last."""
    inner = num_layers - 2
    return tuple(1 + i * inner // count for i in range(count))


@torch.inference_mode()
def made_up(config: ModelConfig, dtype: torch.dtype, device: str) -> Weights:
    """Random weights that keep activations finite, made where they will be used.

    One direction of the residual stream is loud in every embedding, whatever the layers add, and
    the head hears it as the token `SAID`.
    """
    weights = empty_weights(config, dtype, device)
    generator = torch.Generator(device).manual_seed(0)
    for tensor in weights.tensors():
        if tensor.dim() == 2:
            tensor.normal_(0.0, 1.0 / math.sqrt(tensor.shape[1]), generator=generator)
        else:
            tensor.fill_(1.0)
    signs = torch.ones(config.hidden_size, dtype=dtype, device=device)
    signs[::2] = -1.0
    weights.embed.add_(VOICE * signs)
    weights.head[SAID] = signs
    return weights
