"""How the rounds of an engine are played: by the host, pass by pass, or whole on the device."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from admg.config import DraftConfig, EngineConfig
from admg.cuda_graphs import GraphReport
from admg.drafters.draft import Draft
from admg.drafting import Drafted, Drafting
from admg.invariants import check_round
from admg.kv_arena import KVArena
from admg.model import Transformer
from admg.sampling import Sampler
from admg.sequence import Sequence
from admg.verification import Verdict, verify


@dataclass(frozen=True, slots=True)
class Played:
    """One round: what each sequence is to commit, and the seconds of its two phases."""

    verdicts: list[Verdict]
    draft_seconds: float
    verify_seconds: float


class Rounds(Protocol):
    """Plays rounds; the sequences learn on the way."""

    @property
    def report(self) -> GraphReport | None:
        """How many rounds were captured, replayed and played; None where none can be."""

    def play(
        self,
        sequences: list[Sequence],
        drafted: Drafted,
        drafting: Drafting | None,
        context: float,
        config: DraftConfig,
    ) -> Played:
        """One round.

        Args:
            sequences: whose prompts are complete.
            drafted: opened by `drafting`; its draft is filled in here.
            drafting: the drafters; None for a round of plain decoding that nobody looks at.
            context: mean length of the sequences, in tokens.
            config: how drafts are made now.
        """

    def prepare(self, sizes: list[int], tokens: tuple[int, ...]) -> None:
        """Get ready for target passes over so many sequences, and so many tokens of each."""

    def time_target(self, sequences: list[Sequence], draft: Draft, config: DraftConfig) -> float:
        """Seconds of a round that is one target pass over these drafts."""

    def time_own(self, sequences: list[Sequence], drafting: Drafting) -> float:
        """Seconds that a self-draft pass over these sequences adds to a round."""


class HostRounds:
    """Pass by pass; serves every configuration."""

    def __init__(
        self, model: Transformer, arena: KVArena, sampler: Sampler, config: EngineConfig
    ) -> None:
        self._model, self._arena, self._sampler = model, arena, sampler
        self._check, self._by_rejection = config.check, config.draft.by_rejection

    @property
    def report(self) -> None:
        """Nothing is captured."""

    def play(
        self,
        sequences: list[Sequence],
        drafted: Drafted,
        drafting: Drafting | None,
        context: float,
        config: DraftConfig,
    ) -> Played:
        """One round; see `Rounds`."""
        start = time.perf_counter()
        if drafting is not None:
            drafting.draft(sequences, drafted, context)
        drafted_at = time.perf_counter()
        if self._check:
            check_round(sequences, drafted.draft, self._arena, self._by_rejection)
        verdicts = self._verify(sequences, drafted.draft, config)
        return Played(verdicts, drafted_at - start, time.perf_counter() - drafted_at)

    def prepare(self, sizes: list[int], tokens: tuple[int, ...]) -> None:
        """Nothing is kept from round to round."""

    def time_target(self, sequences: list[Sequence], draft: Draft, config: DraftConfig) -> float:
        """Seconds of a round that is one target pass over these drafts."""
        start = time.perf_counter()
        self._verify(sequences, draft, config)
        return time.perf_counter() - start

    def time_own(self, sequences: list[Sequence], drafting: Drafting) -> float:
        """Seconds that a self-draft pass over these sequences adds to a round."""
        start = time.perf_counter()
        drafting.draft_alone(sequences)
        return time.perf_counter() - start

    def _verify(
        self, sequences: list[Sequence], draft: Draft, config: DraftConfig
    ) -> list[Verdict]:
        return verify(self._model, self._arena, self._sampler, sequences, draft, config)
