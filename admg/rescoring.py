"""Forced re-scoring: does the full model, given these tokens, choose them too (DESIGN §4.2, T6)?

In bf16 the same logits come out a little different when they are computed in passes of another
shape, so two exact ways to decode may part where two tokens are about as good: a near-tie. What is
no near-tie is a mistake. Both are told apart here, without trusting either way's text.

Shapes: N tokens of the completion, D hidden size.
"""

from __future__ import annotations

import time
from collections import deque
from functools import partial

import torch
from torch import Tensor

from admg.batch import RaggedBatch
from admg.kv_arena import KVArena
from admg.model import Transformer
from admg.request import Completion, Request, Score
from admg.sampling import Sampler
from admg.scheduler import Scheduler
from admg.sequence import Sequence

# Rows of logits at a time: of a long completion all of them would be gigabytes.
_ROWS = 64
# So many single steps tell how far logits of steps and of whole passes lie apart.
_STEPS = 64


class Rescoring:
    """The engine's sequences with forced tokens: in one round each, where they fit in the arena."""

    def __init__(
        self,
        model: Transformer,
        arena: KVArena,
        sampler: Sampler,
        scheduler: Scheduler,
        prefill_tokens: int,
    ) -> None:
        self._rescore = partial(rescore, model, arena, sampler, most=prefill_tokens)
        self._arena = arena
        self._scheduler = scheduler
        self._waiting: deque[tuple[int, Request, float]] = deque()

    @property
    def waiting(self) -> int:
        """How many are to be done."""
        return len(self._waiting)

    def add(self, handle: int, request: Request) -> None:
        """Queue a sequence."""
        self._waiting.append((handle, request, time.perf_counter()))

    def run(self) -> list[Completion]:
        """The next one with its score, if there is one and it fits beside what runs."""
        s = self._scheduler.place(*self._waiting[0]) if self._waiting else None
        if s is None:
            return []
        self._waiting.popleft()
        score = self._rescore(s)
        self._arena.clear(s.extent)  # for what is not finite must not stay
        self._scheduler.retire(s)
        return [Completion(s.handle, s.request.key, [], "stop", s.stats(), score=score)]


def rescore(model: Transformer, arena: KVArena, sampler: Sampler, s: Sequence, most: int) -> Score:
    """Score `s.request.forced` after the sequence's prompt, in passes of at most `most` tokens.

    Every slot of the sequence up to there is written. Not for completions that were verified by
    rejection at a temperature: those follow noise of their own.
    """
    tokens = s.request.forced
    before = s.prompt_length - 1  # the first token follows the prompt's last one
    inputs = [*s.tokens, *tokens[:-1]]
    hidden = torch.cat(
        [_pass(model, arena, s, inputs[i : i + most], i) for i in range(0, len(inputs), most)]
    )[before:]  # [N, D]
    deficits = torch.cat(
        [
            _deficits(model, sampler, s, hidden[i : i + _ROWS], i)
            for i in range(0, len(tokens), _ROWS)
        ]
    )
    worst = int(deficits.argmax())
    steps = range(max(0, worst + 1 - _STEPS), worst + 1)
    once = model.logits(hidden[steps.start : steps.stop])
    singly = [_pass(model, arena, s, [inputs[before + i]], before + i) for i in steps]
    noise = (once - model.logits(torch.cat(singly))).abs().amax()
    return Score(float(deficits[worst]), float(noise))


def _pass(model: Transformer, arena: KVArena, s: Sequence, tokens: list[int], start: int) -> Tensor:
    return model.forward(RaggedBatch.build([(tokens, start, s.extent)], model.device), arena)


def _deficits(
    model: Transformer, sampler: Sampler, s: Sequence, hidden: Tensor, first: int
) -> Tensor:
    tokens = s.request.forced
    places = range(first, first + len(hidden))
    rows = [s.law_row(tokens[:i]) for i in places]
    forced = torch.tensor(tokens[first : places.stop], device=hidden.device)
    return sampler.deficits(model.logits(hidden), rows, forced)
