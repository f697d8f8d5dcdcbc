"""Configuration values of the engine: frozen, validated where they are made.

Every rejection is a `ValueError` of one sentence that names the field, the value and what would
be right, so that a command line can show it as it stands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from admg.draft_rules import (
    WINDOW_SHARES,
    DropRule,
    ExitRule,
    LayerSets,
    SearchedSets,
    WindowRule,
    refuse,
)

Verification = Literal["shared", "token", "block"]
SimilarityMean = Literal["mean", "last", "decay"]
Drafter = Literal["auto", "admg", "ngram", "none"]
LowBit = Literal["int8", "int4", "fp8"]
DraftWeights = Literal["full", LowBit]
RoundsBy = Literal["auto", "host", "device"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """The law that a sequence's tokens are drawn from, and when the sequence ends.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1, `min_p` 0 and `repetition_penalty` 1 are off.
    `seed` and the sequence's key name its noise stream. `stop` strings end the text before them;
    `stop_token_ids` and the model's EOS end it after themselves. No stop of any kind applies to
    the first `min_tokens` tokens.

    Raises:
        ValueError: a value outside its range, by name.
    """

    max_tokens: int = 128
    min_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        refuse(self.max_tokens < 1, "max_tokens", self.max_tokens, "at least 1")
        refuse(
            not 0 <= self.min_tokens <= self.max_tokens,
            "min_tokens",
            self.min_tokens,
            f"between 0 and max_tokens ({self.max_tokens})",
        )
        refuse(
            not 0 <= self.temperature < math.inf,
            "temperature",
            self.temperature,
            "0 or a number above it",
        )
        refuse(self.top_k < 0, "top_k", self.top_k, "0 (off) or more")
        refuse(not 0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        refuse(not 0 <= self.min_p < 1, "min_p", self.min_p, "at least 0 and below 1")
        refuse(
            not 0 < self.repetition_penalty < math.inf,
            "repetition_penalty",
            self.repetition_penalty,
            "above 0",
        )
        refuse(not 0 <= self.seed < 2**63, "seed", self.seed, "between 0 and 2**63 - 1")
        refuse("" in self.stop, "stop", self.stop, "non-empty strings")

    @property
    def greedy(self) -> bool:
        """Whether the law is a point mass on the most likely token."""
        return self.temperature == 0


@dataclass(frozen=True, slots=True)
class DraftConfig:
    """How the engine drafts.

    `drafter` "admg" drafts with the model itself, "ngram" looks the last tokens up in the
    sequence, "none" is plain decoding, and "auto" chooses among the three in every round, by
    measured cost and acceptance. `draft_tokens` is the longest draft of a round ("auto" may copy
    longer ones).
    `exit_threshold` (None: off) is the start value of Draft & Verify's adaptive confidence exit,
    kept per sequence, and `exit` says how it adapts. `sets`, for comparison, take the place of what
    `drop` says. `similarity_decay` weighs the prompt's tokens in the "decay" mean.
    `hole_filling` puts the running mean of a dropped layer's verified output in its place, in
    which a token weighs `hole_filling_decay` of the one after it. `remake_after` (None: off) is
    the number of verified tokens after which the layers to drop are chosen anew, by them, and
    `remake_every` (None: off) that after which they are chosen again and again, by all verified
    tokens, of which one weighs `similarity_decay` of the one after it.
    `draft_weights` "int8", "int4" and "fp8" draft with a smaller form of the model's matrices, held
    beside them. `lookup_store_tokens` of finished sequences are kept for others to copy from (0:
    each sequence looks up in itself alone, so that statistics too depend on nothing else).
    `lookup_tail` is how many tokens may be looked up behind the model's own. `windows` limits KV
    heads of the layers that are not dropped.

    Raises:
        ValueError: a value outside its range, by name.
    """

    drafter: Drafter = "admg"
    draft_tokens: int = 4
    drop: DropRule = field(default_factory=lambda: DropRule(quantile=0.25))
    similarity: SimilarityMean = "mean"
    similarity_decay: float = 0.99
    exit_threshold: float | None = None
    verification: Verification = "shared"
    hole_filling: bool = True
    hole_filling_decay: float = 0.9
    remake_after: int | None = None
    remake_every: int | None = None
    draft_weights: DraftWeights = "full"
    lookup_store_tokens: int = 65_536
    lookup_tail: int = 0
    windows: WindowRule | None = None
    exit: ExitRule = field(default_factory=ExitRule)
    sets: LayerSets | None = None

    def __post_init__(self) -> None:
        refuse(
            self.drafter not in get_args(Drafter),
            "drafter",
            self.drafter,
            "auto, admg, ngram or none",
        )
        refuse(not 1 <= self.draft_tokens <= 64, "draft_tokens", self.draft_tokens, "1 to 64")
        kinds = get_args(SimilarityMean)
        refuse(self.similarity not in kinds, "similarity", self.similarity, "mean, last or decay")
        refuse(
            not 0 < self.similarity_decay <= 1,
            "similarity_decay",
            self.similarity_decay,
            "in (0, 1]",
        )
        if self.exit_threshold is not None:
            refuse(
                not 0 <= self.exit_threshold <= 1, "exit_threshold", self.exit_threshold, "0 to 1"
            )
        refuse(
            self.verification not in get_args(Verification),
            "verification",
            self.verification,
            "shared, token or block",
        )
        refuse(
            not 0 < self.hole_filling_decay <= 1,
            "hole_filling_decay",
            self.hole_filling_decay,
            "in (0, 1]",
        )
        for name in ("remake_after", "remake_every"):
            tokens = getattr(self, name)
            refuse(tokens is not None and tokens < 1, name, tokens, "at least 1")
        self._refuse_lookup()
        refuse(
            self.draft_weights not in get_args(DraftWeights),
            "draft_weights",
            self.draft_weights,
            "full, int8, int4 or fp8",
        )
        chosen = self.windows is not None and self.windows.share == "auto"
        right = "a share, or the drafter auto, which chooses it"
        refuse(chosen and self.drafter != "auto", "window_share", "auto", right)
        if self.sets is not None:
            self._refuse_beside_sets()
        # Rejected drafts leave their mark on the text, so that would depend on other rows too.
        if self.by_rejection:
            refuse(self.exit.carry, "exit_carry", True, "false unless verification is shared")
            search, right = isinstance(self.sets, SearchedSets), "unless verification is shared"
            refuse(search, "sets", "a search", f"left out {right}")
        if not self.self_drafts:
            self._refuse_own()

    def _refuse_lookup(self) -> None:
        refuse(
            self.lookup_store_tokens != 0 and not 64 <= self.lookup_store_tokens <= 2**24,
            "lookup_store_tokens",
            self.lookup_store_tokens,
            "0 (off) or 64 to 16777216",
        )
        refuse(not 0 <= self.lookup_tail <= 64, "lookup_tail", self.lookup_tail, "0 to 64")
        doubled = self.lookup_tail > 0 and self.drafter == "auto"
        right = "0 with the drafter 'auto', which weighs lookup itself"
        refuse(doubled, "lookup_tail", self.lookup_tail, right)

    def _refuse_beside_sets(self) -> None:
        why = "where sets choose the sub-layers"
        refuse(self.drafter != "admg", "drafter", self.drafter, f"admg {why}")
        for name in ("remake_after", "remake_every", "windows"):
            refuse(getattr(self, name) is not None, name, getattr(self, name), f"off {why}")
        refuse(bool(self.drop.mlps), "mlps", list(self.drop.mlps), f"left out {why}")

    def _refuse_own(self) -> None:
        why = f"with the drafter {self.drafter!r}, which does not draft with the model"
        weights, mlps = self.draft_weights, list(self.drop.mlps)
        refuse(weights != "full", "draft_weights", weights, f"full {why}")
        refuse(bool(mlps), "mlps", mlps, f"left out {why}")
        refuse(self.lookup_tail > 0, "lookup_tail", self.lookup_tail, f"0 {why}")
        if self.windows is not None:
            name = "share" if self.windows.threshold is None else "threshold"
            value = getattr(self.windows, name)
            refuse(True, f"window_{name}", value, f"left out {why}")

    def without_own(self) -> DraftConfig:
        """Lookup alone: where self-drafts do not pay."""
        drop = replace(self.drop, mlps=())
        own: dict[str, Any] = {"draft_weights": "full", "windows": None, "lookup_tail": 0}
        return replace(self, drafter="ngram", drop=drop, **own)

    @property
    def window_shares(self) -> tuple[float, ...]:
        """The shares of limited KV heads that are the controller's to choose from, if any."""
        free = self.windows is not None and self.windows.share == "auto"
        return WINDOW_SHARES if free else ()

    def with_share(self, share: float) -> DraftConfig:
        """With this share of KV heads limited, where it is the controller's to choose."""
        if not self.window_shares or self.windows is None:
            return self
        return replace(self, windows=replace(self.windows, share=share))

    @property
    def self_drafts(self) -> bool:
        """Whether the model's own sub-network may draft."""
        return self.drafter in ("admg", "auto")

    @property
    def aging(self) -> float:
        """What a verified token's similarities weigh of those of the one after it."""
        return 1.0 if self.remake_every is None else self.similarity_decay

    @property
    def order_dependent(self) -> bool:
        """Whether statistics (not tokens) may go by what was decoded before, or measured time."""
        copies = self.drafter == "ngram" and self.lookup_store_tokens > 0
        carries = self.self_drafts and self.exit_threshold is not None and self.exit.carry
        # On CUDA the faster of two products takes part, and they round differently.
        timed = self.drafter == "auto" or self.draft_weights != "full"
        return timed or copies or carries or isinstance(self.sets, SearchedSets)

    @property
    def by_rejection(self) -> bool:
        """Whether verification needs the laws that draft tokens were drawn from."""
        return self.verification != "shared"

    @property
    def low_bit(self) -> LowBit | None:
        """The smaller form of the weights that drafts need, if any."""
        return None if self.draft_weights == "full" else self.draft_weights


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Sizes of the engine.

    `kv_budget_bytes` None takes a share of the free memory, on CUDA what is left of
    `gpu_memory_utilization` of all memory. `max_model_len` None takes the model's own limit.
    `prefill_tokens` bounds the prompt tokens of one pass. `rounds` says who plays a round: the
    "host", pass by pass, or the "device", whole; "auto" is the device on CUDA. `check` runs the
    invariants I1-I7 after every round (slow; for tests).

    Raises:
        ValueError: a value outside its range, by name.
    """

    max_num_seqs: int = 16
    kv_budget_bytes: int | None = None
    gpu_memory_utilization: float = 0.9
    max_model_len: int | None = None
    prefill_tokens: int = 1024
    draft: DraftConfig = field(default_factory=DraftConfig)
    rounds: RoundsBy = "auto"
    check: bool = False

    def __post_init__(self) -> None:
        refuse(self.max_num_seqs < 1, "max_num_seqs", self.max_num_seqs, "at least 1")
        if self.kv_budget_bytes is not None:
            refuse(self.kv_budget_bytes < 1, "kv_budget_bytes", self.kv_budget_bytes, "above 0")
        share = self.gpu_memory_utilization
        right = "a share of the device's memory, above 0 and at most 1"
        refuse(not 0 < share <= 1, "gpu_memory_utilization", share, right)
        if self.max_model_len is not None:
            refuse(self.max_model_len < 2, "max_model_len", self.max_model_len, "at least 2")
        refuse(self.prefill_tokens < 1, "prefill_tokens", self.prefill_tokens, "at least 1")
        names = get_args(RoundsBy)
        refuse(self.rounds not in names, "rounds", self.rounds, "auto, host or device")
