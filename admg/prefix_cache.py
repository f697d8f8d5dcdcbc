"""Prefix caching: what all waiting prompts begin with is prefilled once and copied.

Shapes: L layers, K KV heads, P tokens of the prefix, d head size.

The rows of a job share their instructions and their few-shot examples. Their keys and values do
not depend on what follows, so they are computed once and copied into the extent of every sequence
that begins with them; what these tokens taught about similarities and hole fillings goes along, so
that a plan still rests on the whole prompt.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

from torch import Tensor

from admg.batch import RaggedBatch
from admg.config import DraftConfig, EngineConfig
from admg.kv_arena import Extent, KVArena
from admg.learned import Learned
from admg.learning import PromptObservers
from admg.model import Transformer
from admg.prompt_store import PromptStore
from admg.sequence import Sequence

# Copying fewer tokens gains nothing over computing them in a pass that runs anyway.
MIN_TOKENS = 16
# The copy lies beside the arena; at most this share of the arena's size.
MAX_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Prefix:
    """P tokens, their keys and values [L, K, P, d], and what they taught.

    That is as if the prompt ended with the prefix.
    """

    tokens: list[int]
    keys: Tensor
    values: Tensor
    learned: Learned

    def begins(self, prompt: list[int]) -> bool:
        """Whether a prompt begins with these tokens and goes on: its last token is computed."""
        return len(prompt) > len(self.tokens) and prompt[: len(self.tokens)] == self.tokens


class PrefixCache:
    """The one prefix that the sequences of this engine share, as far as it is known.

    With a `store`, whole prompts come from there instead, and go there.
    """

    def __init__(
        self,
        model: Transformer,
        arena: KVArena,
        config: EngineConfig,
        store: PromptStore | None = None,
    ) -> None:
        self._model = model
        self._arena = arena
        self._config = config
        self._prefix: Prefix | None = None
        self._store = store
        if store is not None:
            store.check(config.draft)

    def learn(self, prompts: Seq[list[int]]) -> None:
        """Compute the prefix that all these prompts share, unless it is known or short.

        Needs free slots for it while it computes; without them nothing changes.
        """
        if self._store is not None or len(prompts) < 2:
            return
        if self._prefix and all(map(self._prefix.begins, prompts)):
            return
        most = int(self._arena.num_slots * MAX_SHARE)
        length = min(_shared(prompts), min(map(len, prompts)) - 1, most)
        if length >= MIN_TOKENS:
            self._prefix = self._compute(prompts[0][:length]) or self._prefix

    def fill(self, s: Sequence) -> int:
        """Give a new sequence the prefix, if it begins with it; how many tokens that spares.

        With a store the rest of a prompt that is not there yet is computed here, and not spared.
        """
        if self._store is not None:
            return self._from_store(self._store, s)
        prefix = self._prefix
        if prefix is None or not prefix.begins(s.tokens):
            return 0
        self._give(s, prefix, prefix.learned)
        return s.computed

    def _from_store(self, store: PromptStore, s: Sequence) -> int:
        tokens = s.tokens[:-1]
        if not tokens:
            return 0
        known = store.get(tokens)
        prefix = known or self._computed(tokens, s.extent, store.observe)
        if known is None:
            store.put(prefix)
        self._give(s, prefix, store.learned(prefix, self._config.draft))
        return 0 if known is None else s.computed

    def _give(self, s: Sequence, prefix: Prefix, learned: Learned) -> None:
        self._arena.paste(s.extent, prefix.keys, prefix.values)
        s.computed = len(prefix.tokens)
        s.learned = learned
        if learned.similarity_sums is not None:
            # A similarity's weights look back from the prompt's end; hole filling ages by itself.
            draft, after = self._config.draft, s.prompt_length - s.computed
            share = {"mean": 1.0, "last": 0.0}.get(draft.similarity, draft.similarity_decay**after)
            s.learned = replace(
                learned,
                similarity_sums=learned.similarity_sums * share,
                similarity_weight=learned.similarity_weight * share,
            )

    def _compute(self, tokens: list[int]) -> Prefix | None:
        extent = self._arena.allocate(len(tokens))
        if extent is None:
            return None
        prefix = self._computed(tokens, extent, self._config.draft)
        self._arena.release(extent)
        return prefix

    def _computed(self, tokens: list[int], extent: Extent, draft: DraftConfig) -> Prefix:
        """The prefix of these tokens, computed in an extent."""
        learned = Learned()
        for start in range(0, len(tokens), self._config.prefill_tokens):
            part = tokens[start : start + self._config.prefill_tokens]
            batch = RaggedBatch.build([(part, start, extent)], self._model.device)
            lengths = ([start], [len(part)], [len(tokens)])
            observers = PromptObservers(self._model, draft, *lengths, (batch, self._arena))
            heads = observers.heads
            self._model.forward(batch, self._arena, observers=observers.all, heads=heads)
            learned = observers.onto(learned, 0)
        keys, values = self._arena.copy(extent, len(tokens))
        return Prefix(tokens, keys, values, learned)


def _shared(prompts: Seq[list[int]]) -> int:
    """How many tokens all prompts begin with: the least and the greatest of them differ first."""
    least, greatest = min(prompts), max(prompts)
    pairs = enumerate(zip(least, greatest, strict=False))
    return next((i for i, (a, b) in pairs if a != b), len(least))
