"""Admission: who waits, who runs, and whose prompt is prefilled in the next pass.

Prompt length and `max_tokens` are known when a sequence is admitted, so it gets its whole extent
then; it can never run out of slots, and nothing is ever preempted.
"""

from __future__ import annotations

import time
from bisect import insort
from dataclasses import dataclass

from admg.config import EngineConfig
from admg.kv_arena import Extent, KVArena
from admg.noise import stream
from admg.request import Request
from admg.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next `count` prompt tokens of a sequence, to be prefilled in one pass."""

    sequence: Sequence
    count: int

    @property
    def part(self) -> tuple[list[int], int, Extent]:
        """What `RaggedBatch.build` takes."""
        start = self.sequence.computed
        return self.sequence.tokens[start : start + self.count], start, self.sequence.extent

    @property
    def finishes(self) -> bool:
        """Whether the prompt is complete after this chunk."""
        return self.sequence.computed + self.count == self.sequence.prompt_length


class Scheduler:
    """Longest first, within `max_num_seqs` and the arena's slots.

    Sequences of similar length then run side by side, in extents of equal capacity, which is what
    batched attention wants; and the job does not end with one long sequence alone. Nobody starves:
    offline, what can arrive while a sequence waits is bounded.

    `running` is kept in the order of the extents, so that neighbours in memory are neighbours in
    the pass (the attention's groups need no reordering then).
    """

    def __init__(self, config: EngineConfig, arena: KVArena, eos: frozenset[int]) -> None:
        self._config = config
        self._arena = arena
        self._eos = eos
        self._waiting: list[tuple[int, Request, float]] = []
        self.running: list[Sequence] = []

    @property
    def num_waiting(self) -> int:
        """Sequences not admitted yet."""
        return len(self._waiting)

    def add(self, handle: int, request: Request) -> None:
        """Queue a sequence."""
        entry = (handle, request, time.perf_counter())
        insort(self._waiting, entry, key=lambda e: (-_length(e[1]), e[0]))

    def waiting_prompts(self, limit: int) -> list[list[int]]:
        """The prompts of the next `limit` sequences to be admitted."""
        return [request.prompt_token_ids for _, request, _ in self._waiting[:limit]]

    def admit(self) -> list[Sequence]:
        """Move waiting sequences into free places, longest first, while the first one fits.

        Returns:
            Those that were moved.
        """
        admitted: list[Sequence] = []
        while self._waiting and len(self.running) < self._config.max_num_seqs:
            sequence = self.place(*self._waiting[0])
            if sequence is None:
                break
            self._waiting.pop(0)
            admitted.append(sequence)
        return admitted

    def place(self, handle: int, request: Request, arrived: float) -> Sequence | None:
        """Give a sequence its whole extent and let it run; None where no extent is free now."""
        extent = self._arena.allocate(_length(request))
        if extent is None:
            return None
        stops = set(request.sampling.stop_token_ids)
        if not request.sampling.ignore_eos:
            stops |= self._eos
        sequence = Sequence(
            handle,
            request,
            stream(request.sampling.seed, request.key),
            tuple(sorted(stops)),
            list(request.prompt_token_ids),
            extent,
        )
        sequence.tally.queue_seconds = time.perf_counter() - arrived
        insort(self.running, sequence, key=lambda s: s.extent.start)
        return sequence

    def next_chunks(self) -> list[Chunk]:
        """Prompt tokens of the next prefill pass, within `prefill_tokens`; empty if none.

        A prompt that does not fit beside others is cut only where the pass would be less than half
        full without it: else it is whole in the next one, and its sequence is not in two passes.
        """
        room = most = self._config.prefill_tokens
        chunks: list[Chunk] = []
        for s in self.running:
            left = s.prompt_length - s.computed
            waits = left > room and 2 * room <= most
            if left > 0 and room and not waits:
                chunks.append(Chunk(s, min(left, room)))
                room -= chunks[-1].count
        return chunks

    def decoding(self) -> list[Sequence]:
        """Running sequences whose prompt is complete."""
        return [s for s in self.running if s.computed >= s.prompt_length]

    def retire(self, sequence: Sequence) -> None:
        """Free a sequence's place and slots."""
        self.running.remove(sequence)
        self._arena.release(sequence.extent)


def _length(request: Request) -> int:
    """Slots that a sequence may come to need."""
    return len(request.prompt_token_ids) + request.sampling.max_tokens
