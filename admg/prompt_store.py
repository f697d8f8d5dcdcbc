"""Prompts that several engines on one model decode: each is prefilled once for all of them.

Whoever compares drafters decodes the same prompts again and again, and the prompt's keys, values
and similarities depend on no drafter. A store belongs to one model and goes from engine to engine;
all but the last token of each prompt comes from it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from admg.config import DraftConfig
from admg.learned import Learned

if TYPE_CHECKING:
    from admg.prefix_cache import Prefix


class PromptStore:
    """Prefilled prompts by their tokens.

    Args:
        observe: what is learned of each prompt on the way: the similarity's mean, and fillings and
            limits of KV heads if they are switched on. Engines may use less than that, not more.
        budget_bytes: of keys and values together; prompts beyond it are not kept.
    """

    def __init__(self, observe: DraftConfig, budget_bytes: int) -> None:
        self.observe = observe
        self._room = budget_bytes
        self._prefixes: dict[tuple[int, ...], Prefix] = {}

    def __len__(self) -> int:
        return len(self._prefixes)

    def check(self, draft: DraftConfig) -> None:
        """Refuse an engine that would have to learn more from a prompt than the store has.

        Raises:
            ValueError: naming the field.
        """
        if not draft.self_drafts:
            return
        names = ["similarity"] + ["similarity_decay"] * (draft.similarity == "decay")
        if draft.hole_filling:
            names += ["hole_filling", "hole_filling_decay"]
        for name in names:
            mine, theirs = getattr(self.observe, name), getattr(draft, name)
            if mine != theirs:
                raise ValueError(f"{name} is {theirs!r}: it must be the prompt store's, {mine!r}")
        if draft.windows is not None:
            seen = self.observe.windows
            if seen is None or seen.window != draft.windows.window:
                raise ValueError("windows are asked for: it must be those of the prompt store")

    def get(self, tokens: list[int]) -> Prefix | None:
        """What is known of these tokens."""
        return self._prefixes.get(tuple(tokens))

    def put(self, prefix: Prefix) -> None:
        """Keep a prefix while there is room."""
        size = prefix.keys.nbytes + prefix.values.nbytes
        if size <= self._room:
            self._room -= size
            self._prefixes[tuple(prefix.tokens)] = prefix

    def learned(self, prefix: Prefix, draft: DraftConfig) -> Learned:
        """Of what a prefix taught, what this draft configuration would have learned."""
        known = prefix.learned
        if not draft.hole_filling:
            known = replace(known, filling=None)
        if draft.windows is None:
            known = replace(known, unit_sums=None, unit_weight=0.0)
        return known
