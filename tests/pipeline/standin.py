"""A fast deterministic engine in the model's place: same factory calls, no torch, no weights.

The completion is a function of the prompt's token ids alone, so whatever order, block, actor or
rerun a row went through, its text can be foretold (`expected`).
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from admg.request import Completion, Request
from admg.stats import EngineCounters, SequenceStats

CONTEXT = 400
POISON = "POISON"
REFUSED = "REFUSED"


class ByteTokenizer:
    """Token ids are UTF-8 bytes; 256 begins a text with `special`."""

    def encode(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        return [[256] * special + list(text.encode()) for text in texts]

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> str:
        if any(m["role"] not in ("system", "user", "assistant") for m in messages):
            raise ValueError("unknown role")
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"

    def decode(self, token_ids: Sequence[int], skip_special: bool) -> str:
        return bytes(i for i in token_ids if i < 256).decode(errors="replace")


def expected_ids(prompt_ids: Sequence[int], max_tokens: int) -> list[int]:
    """What the stand-in answers."""
    seed = sum((i + 1) * token for i, token in enumerate(prompt_ids))
    return [97 + (seed + 7 * i) % 26 for i in range(1 + seed % max_tokens)]


def expected(prompt: str, max_tokens: int, special: bool = True) -> str:
    """The text that the stand-in answers to a prompt."""
    return bytes(expected_ids([256] * special + list(prompt.encode()), max_tokens)).decode()


class StandInEngine:
    """Runs up to `max_num_seqs` sequences, one token a step for each."""

    def __init__(self, factory: StandIn) -> None:
        self._factory = factory
        self._waiting: deque[tuple[int, Request]] = deque()
        self._running: dict[int, tuple[Request, list[int]]] = {}
        self._next = 0
        self._finished = 0
        self._made = 0

    @property
    def counters(self) -> EngineCounters:
        return EngineCounters(
            completion_tokens=self._made,
            num_running=len(self._running),
            num_waiting=len(self._waiting),
        )

    def explain(self) -> None:
        return None

    def submit(self, request: Request) -> int:
        self._next += 1
        self._waiting.append((self._next, request))
        return self._next

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    def step(self) -> list[Completion]:
        while self._waiting and len(self._running) < self._factory.max_num_seqs:
            handle, request = self._waiting.popleft()
            if POISON.encode() in bytes(i % 256 for i in request.prompt_token_ids):
                raise RuntimeError("the stand-in met poison")
            self._log(request.key)
            self._running[handle] = (request, [])
        time.sleep(self._factory.step_seconds)
        done = []
        for handle, (request, ids) in list(self._running.items()):
            full = expected_ids(request.prompt_token_ids, request.sampling.max_tokens)
            ids.append(full[len(ids)])
            self._made += 1
            if len(ids) == len(full):
                done.append(self._complete(handle, request, ids))
                del self._running[handle]
        self._finished += len(done)
        fuse = self._factory.die_after
        if fuse is not None and self._finished >= fuse and os.path.exists(self._factory.fuse):
            Path(f"{self._factory.fuse}.blown").touch()
            raise RuntimeError("the stand-in's fuse blew")
        return done

    def _complete(self, handle: int, request: Request, ids: list[int]) -> Completion:
        if REFUSED.encode() in bytes(i % 256 for i in request.prompt_token_ids):
            return Completion(
                handle,
                request.key,
                [],
                "error",
                SequenceStats(),
                error_code="model_output_invalid",
                error_message="the logits are not finite",
            )
        stats = SequenceStats(
            prompt_tokens=len(request.prompt_token_ids),
            completion_tokens=len(ids),
            num_spec_steps=len(ids),
            num_draft_tokens=4 * len(ids),
            num_accepted_draft_tokens=len(ids),
            mean_acceptance_length=2.0,
            draft_acceptance_rate=0.25,
            acceptance_histogram=[0, len(ids)],
            speedup=1.5,
            speedup_end_to_end=1.25,
            dropped_attention_layers=[3, 5],
            attention_similarity=[0.5, 0.75],
            drafter_tokens={"admg": 4 * len(ids)},
            prefill_seconds=0.5,
            decode_seconds=1.0,
        )
        text = bytes(ids).decode() if self._factory.detokenizes else None
        return Completion(handle, request.key, list(ids), "stop", stats, text=text)

    def _log(self, key: str) -> None:
        if self._factory.log:
            with open(self._factory.log, "a") as log:  # one short line: appended atomically
                log.write(f"{key}\n")


@dataclass(frozen=True)
class StandIn:
    """An engine factory. With `fuse` (a file) and `die_after` an engine dies for good."""

    max_num_seqs: int = 8
    step_seconds: float = 0.0
    log: str = ""
    fuse: str = ""
    die_after: int | None = None
    detokenizes: bool = True
    refuses_to_load: bool = False
    model: str = "stand-in"

    def check(self) -> int | None:
        return CONTEXT

    def identity(self) -> dict[str, str]:
        return {"weights": self.model}

    def tokenizer(self) -> ByteTokenizer:
        return ByteTokenizer()

    def build(self, max_num_seqs: int | None = None) -> StandInEngine:
        blown = self.die_after is not None and os.path.exists(f"{self.fuse}.blown")
        if self.refuses_to_load or blown:
            raise OSError("the stand-in's weights are gone")
        smaller = self if max_num_seqs is None else replace(self, max_num_seqs=max_num_seqs)
        return StandInEngine(smaller)

    def submitted(self) -> list[str]:
        """Keys of all sequences that any engine of this factory has taken in."""
        return Path(self.log).read_text().split() if Path(self.log).exists() else []
