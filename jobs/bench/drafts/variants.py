"""The drafts that are compared, each with its bar, and in which order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from admg.config import DraftConfig, Verification
from admg.draft_rules import DropRule, WindowRule
from admg.windows import SINKS

WINDOW = 64
REMAKE = 16
REFRESH = 32
SAVED = (0.30, 0.45, 0.60, 0.75)
# By how much budgets are to bring more tokens per target pass than dropped layers.
ABOVE_DROPPED = 1.30
_NOTHING = DropRule(count=0)
# How budgets are chosen and filled; the first way is what dropped layers are compared with.
_WAYS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("remade, filled", {"remake_after": REMAKE}),
    ("filled", {}),
    ("remade", {"remake_after": REMAKE, "hole_filling": False}),
    ("refreshed, filled", {"remake_after": REMAKE, "remake_every": REFRESH}),
)


@dataclass(frozen=True, slots=True)
class Variant:
    """One kind of draft: its group in the table, its name, and the tokens per pass it should give.

    `saved` names budgets by the share of keys and values that they should save; the dropped layers
    that are compared with them carry the same number.
    """

    group: str
    name: str
    draft: DraftConfig
    temperature: float = 0.0
    bar: float | None = None
    saved: float | None = None


def own(drop: DropRule = _NOTHING, **fields: Any) -> DraftConfig:
    """Self-drafts of 4 tokens; where `fields` have another number, of that many."""
    given: dict[str, Any] = {"draft_tokens": 4, "drop": drop} | fields
    return DraftConfig(**given)


def budget(saved: float, length: float, **fields: Any) -> DraftConfig:
    """Limits of KV heads that save this share of the keys and values of `length` tokens."""
    unseen = 1 - (SINKS + WINDOW) / length
    share = min(1.0, saved / unseen) if unseen > 0 else 1.0
    return own(windows=WindowRule(share=share, window=WINDOW), **fields)


def fixed(length: float, quick: bool) -> Iterator[Variant]:
    """All but the dropped layers that are compared with budgets; these depend on what was saved.

    Args:
        length: of a usual sequence, in tokens.
        quick: the shorter list.
    """
    dropped, small, limits = "dropped layers", "smaller weights", "budgets"
    yield Variant(dropped, "8 dropped", own(DropRule(count=8), hole_filling=False), bar=2.9)
    yield Variant(dropped, "8 dropped, filled", own(DropRule(count=8)), bar=3.5)
    yield Variant(dropped, "12 dropped, filled", own(DropRule(count=12)), bar=3.2)
    if not quick:
        yield Variant(dropped, "12 dropped", own(DropRule(count=12), hole_filling=False))
        remade = own(DropRule(count=12), remake_after=REMAKE)
        yield Variant(dropped, "12 dropped, filled, remade", remade)
        again = own(DropRule(count=12), remake_after=REMAKE, remake_every=REFRESH)
        yield Variant(dropped, "12 dropped, filled, refreshed", again)
    yield Variant(small, "int8", own(draft_weights="int8"), bar=4.7)
    yield Variant(small, "int4", own(draft_weights="int4"), bar=4.0)
    for saved in SAVED[1:2] if quick else SAVED:
        for name, fields in _WAYS[:1] if quick else _WAYS:
            draft = budget(saved, length, **fields)
            compared = saved if name == _WAYS[0][0] else None
            yield Variant(limits, f"{saved:.0%} saved, {name}", draft, saved=compared)
    if not quick:
        both = budget(0.45, length, remake_after=REMAKE, draft_weights="int8")
        yield Variant("together", "int8, 45% saved, remade, filled", both)
    lookup = DraftConfig(drafter="ngram", draft_tokens=4, lookup_store_tokens=0)
    yield Variant("lookup", "lookup", lookup)
    tail = own(DropRule(count=8), lookup_tail=4)
    yield Variant("lookup", "8 dropped, filled, tail of 4", tail)
    for temperature in (1.0,) if quick else (0.6, 1.0):
        for verification in ("shared", "token", "block"):
            yield _verified(verification, temperature)


def _verified(verification: Verification, temperature: float) -> Variant:
    draft = own(DropRule(count=8), verification=verification)
    name = f"8 dropped, filled, {verification}"
    return Variant(f"verification at temperature {temperature:g}", name, draft, temperature)


def dropped_beside(saved: float, kv_saved: float, num_layers: int) -> Variant:
    """As many dropped layers as save what budgets have saved, remade and filled as they were."""
    count = min(max(1, round(kv_saved * num_layers)), num_layers - 2)
    draft = own(DropRule(count=count), remake_after=REMAKE)
    return Variant("dropped layers", f"{count} dropped, filled, remade", draft, saved=saved)
