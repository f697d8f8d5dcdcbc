"""Decoding a cell: one model, one engine for each drafter, prompts prefilled once for all of them.

What is counted here does not depend on how many sequences are decoded together, so all tasks and
laws of a cell share one batch.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from admg.config import DraftConfig, EngineConfig, SamplingParams
from admg.draft_rules import WindowRule
from admg.engine import Engine
from admg.kv_arena import SLOT_GRAIN, bytes_per_slot
from admg.prompt_store import PromptStore
from admg.request import Completion, FinishReason, Request
from admg.windows import SINKS
from jobs.bench.memory import available_bytes
from jobs.bench.paper.cells import Cell
from jobs.bench.paper.rows import Rows
from jobs.bench.paper.settings import LAWS
from jobs.bench.paper.tasks import Task

if TYPE_CHECKING:
    from admg.model import Transformer

WINDOW = 64
# Of the device's free memory, for the keys and values of prompts that many cells decode; there is
# such a store for each way to average similarities.
_STORE_SHARE = 0.15


class Decoder:
    """A loaded model, its tokenizer and the prompts that it has prefilled.

    Args:
        model: the target.
        tokenizer: turns ids into text, for stop strings and for scores.
        tasks: by name.
        batch: sequences that are decoded together.
        seed: names the noise of every sequence.
        store: whether prompts are prefilled once for all engines; without it every run pays.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: object,
        tasks: Mapping[str, Task],
        *,
        batch: int,
        seed: int,
        store: bool = True,
    ) -> None:
        self.model = model
        self.tasks = tasks
        self._tokenizer = tokenizer
        self._batch, self._seed = batch, seed
        self._stores: dict[tuple[str, float], PromptStore] | None = {} if store else None
        eos = set(model.config.eos_token_ids)
        own = getattr(tokenizer, "eos_token_id", None)
        self._eos = sorted(eos | ({own} if own is not None else set()))

    def engine(self, draft: DraftConfig, requests: Sequence[Request]) -> Engine:
        """An engine whose arena holds a full batch of the longest of these sequences."""
        lengths = [len(r.prompt_token_ids) + r.sampling.max_tokens for r in requests]
        batch = min(self._batch, len(requests))
        slots = batch * -(-max(lengths) // SLOT_GRAIN) * SLOT_GRAIN
        config = EngineConfig(
            max_num_seqs=batch,
            max_model_len=max(lengths),
            kv_budget_bytes=slots * bytes_per_slot(self.model.config, self.model.dtype),
            draft=draft,
        )
        return Engine(
            self.model,
            config,
            eos_token_ids=self._eos,
            detokenize=self.text,
            prompts=self._store(draft),
        )

    def text(self, ids: list[int]) -> str:
        """Of token ids, without special tokens."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))  # type: ignore[attr-defined]

    def requests(self, cell: Cell) -> list[Request]:
        """One for each prompt of each task under each law; the key says which."""
        found = []
        for name in cell.tasks:
            task = self.tasks[name]
            limit = (
                task.max_tokens if cell.whole else min(cell.tokens or task.counted, task.counted)
            )
            for law in cell.laws:
                params = SamplingParams(
                    max_tokens=limit, seed=self._seed, stop=task.stop, **LAWS[law]
                )
                # More than there are is asked for by full batches that are timed: some stand twice,
                # as rows of their own.
                known = len(task.prompts)
                for i in range(cell.prompts):
                    found.append(Request(task.prompts[i % known], params, key=f"{name}/{law}/{i}"))
        return found

    def held_out(self, task: Task, limit: int) -> list[Request]:
        """A greedy request for each prompt that is kept for calibrating."""
        params = SamplingParams(max_tokens=limit, seed=self._seed, stop=task.stop)
        return [
            Request(prompt, params, key=f"{task.name}/held out/{i}")
            for i, prompt in enumerate(task.held_out)
        ]

    def decode(self, draft: DraftConfig, requests: Sequence[Request]) -> dict[str, Completion]:
        """Completions by key.

        Raises:
            RuntimeError: one of them failed.
        """
        engine = self.engine(draft, requests)
        return done_by_key(engine, requests)

    def similarities(self, prompts: Sequence[list[int]], draft: DraftConfig) -> list[list[float]]:
        """The similarity of each layer for each prompt, [N][L]."""
        one = SamplingParams(max_tokens=1, ignore_eos=True)
        requests = [Request(p, one, key=str(i)) for i, p in enumerate(prompts)]
        done = self.decode(draft, requests)
        return [done[str(i)].stats.attention_similarity for i in range(len(prompts))]

    def _store(self, draft: DraftConfig) -> PromptStore | None:
        if self._stores is None:
            return None
        decay = draft.similarity_decay if draft.similarity == "decay" else 0.0
        key = (draft.similarity, decay)
        if key not in self._stores:
            # Limits are only ever asked for with the usual mean; they cost time to look at.
            usual = draft.similarity == DraftConfig().similarity
            seen = DraftConfig(
                similarity=draft.similarity,
                similarity_decay=draft.similarity_decay,
                windows=WindowRule(share=0.5, window=WINDOW) if usual else None,
            )
            self._stores[key] = PromptStore(seen, int(available_bytes() * _STORE_SHARE))
        return self._stores[key]


def done_by_key(engine: Engine, requests: Sequence[Request]) -> dict[str, Completion]:
    """What an engine makes of the requests.

    Raises:
        RuntimeError: one of them failed.
    """
    done = {c.key: c for c in engine.generate(requests)}
    for completion in done.values():
        if completion.finish_reason == "error":
            raise RuntimeError(f"{completion.key}: {completion.error_message}")
    return done


def trail(ids: Sequence[int]) -> list[int]:
    """A checksum of every beginning of a completion: tells texts apart without keeping them."""
    found, crc = [], 0
    for token in ids:
        crc = zlib.crc32(token.to_bytes(8, "little"), crc)
        found.append(crc)
    return found


def same(completion: Completion, plain: Sequence[int], ended: FinishReason, limit: int) -> bool:
    """Whether a completion of up to `limit` tokens is the beginning of plain decoding's.

    It ends for the same reason, or at the limit where plain decoding's goes on.

    Args:
        completion: of a drafter.
        plain: the trail of plain decoding, whose limit was as high or higher.
        ended: why plain decoding's ended.
        limit: `max_tokens` of the completion.
    """
    ids = completion.token_ids
    reason = ended if len(plain) <= limit else "length"
    whole = len(ids) == min(len(plain), limit) and completion.finish_reason == reason
    return whole and trail(ids) == list(plain[: len(ids)])


def rows_of(
    completions: Sequence[Completion],
    draft: DraftConfig,
    model: Transformer,
    identical: Sequence[bool],
    quality: dict[str, list[float]],
    *,
    wall: float | None = None,
) -> Rows:
    """The columns of the completions of one task under one law.

    Args:
        wall: seconds that they took together, where they were timed.
    """
    timed = wall is not None
    stats = [c.stats for c in completions]
    mlps = draft.drop.mlps if draft.sets is None else range(draft.sets.mlps)
    return Rows(
        prompt=[s.prompt_tokens for s in stats],
        tokens=[s.completion_tokens for s in stats],
        passes=[s.num_spec_steps for s in stats],
        committed=[round((s.mean_acceptance_length or 0) * s.num_spec_steps) for s in stats],
        drafted=[s.num_draft_tokens for s in stats],
        own=[s.drafter_tokens.get("admg", 0) for s in stats],
        accepted=[s.num_accepted_draft_tokens for s in stats],
        dropped=[list(s.dropped_attention_layers) for s in stats],
        mlps=len(mlps) if draft.self_drafts else 0,
        windowed=[_windowed(c, draft, model) for c in completions],
        identical=list(identical),
        ended=[c.finish_reason for c in completions],
        quality=quality,
        wall=wall or 0.0,
        prefill_seconds=[s.prefill_seconds for s in stats if timed],
        decode_seconds=[s.decode_seconds for s in stats if timed],
    )


def _windowed(completion: Completion, draft: DraftConfig, model: Transformer) -> float:
    """How many (layer, KV head) units the draft limited, from the share of KV that it saved."""
    stats = completion.stats
    if draft.windows is None or stats.draft_kv_saved is None:
        return 0.0
    layers, heads = model.config.num_layers, model.config.num_kv_heads
    length = stats.prompt_tokens + stats.completion_tokens
    seen = SINKS + draft.windows.window
    if length <= seen:
        return 0.0
    saved = stats.draft_kv_saved * layers * heads * length
    dropped = len(stats.dropped_attention_layers) * heads * length
    return round((saved - dropped) / (length - seen), 2)
