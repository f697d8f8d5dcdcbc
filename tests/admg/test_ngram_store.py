"""What finished sequences said: found again, bounded, and never seen in a completion."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from admg.config import DraftConfig, SamplingParams
from admg.drafters.ngram_store import LEAD, LENGTHS, NgramStore
from admg.engine import Engine
from admg.request import Request
from tests.admg.decoding import engine_config, load, random_prompts

TOKENS = st.lists(st.integers(0, 3), max_size=30)


@given(st.lists(st.tuples(TOKENS, TOKENS), max_size=6), TOKENS)
def test_it_finds_the_latest_place_of_the_longest_suffix(
    texts: list[tuple[list[int], list[int]]], tokens: list[int]
) -> None:
    store = NgramStore(10_000)
    kept = []
    for prompt, completion in texts:
        store.add(prompt, completion)
        kept.append(prompt[-LEAD:] + completion)
    expected = None
    for n in LENGTHS:
        places = [
            text[at:]
            for text in kept
            for at in range(n, len(text))
            if len(tokens) >= n and text[at - n : at] == tokens[-n:]
        ]
        if places:
            expected = (n, places[-1])
            break
    found = store.match(tokens)
    assert (None if found is None else (found.matched, found.copy(10_000))) == expected
    if found is not None and expected is not None:
        assert found.copy(2) == expected[1][:2]


@given(st.lists(st.integers(1, 200), max_size=40))
def test_it_never_holds_more_than_it_may(lengths: list[int]) -> None:
    store = NgramStore(256)
    for i, length in enumerate(lengths):
        text = [1000 * i + j for j in range(length)]
        store.add([], text)
        assert len(store) <= 256
        if LENGTHS[-1] < length < 100:
            assert store.match(text[:3]) is not None, "the latest is always there"


@pytest.mark.parametrize("drafter", ["ngram", "auto"])
@pytest.mark.parametrize("verification", ["shared", "token"])
def test_a_row_that_was_there_before_is_copied(
    drafter: str, verification: str, llama_checkpoint: Path
) -> None:
    model = load(llama_checkpoint)
    prompts = random_prompts(model.config.vocab_size, [12, 40, 25])
    laws = [SamplingParams(max_tokens=24), SamplingParams(max_tokens=24, temperature=1.0, seed=4)]
    if verification == "token":
        laws = laws[:1]
    said: dict[int, list[list[int]]] = {}
    accepted = {}
    for store in (0, 4096):
        draft = DraftConfig(
            drafter=drafter,  # type: ignore[arg-type]
            verification=verification,  # type: ignore[arg-type]
            lookup_store_tokens=store,
        )
        engine = Engine(model, engine_config(draft, max_num_seqs=2), eos_token_ids=[])
        said[store], accepted[store] = [], 0
        for turn in range(2):
            for i, prompt in enumerate(prompts):
                request = Request(prompt, laws[i % len(laws)], key=str(i))
                (done,) = engine.generate([request])
                said[store].append(list(done.token_ids))
                accepted[store] += done.stats.num_accepted_draft_tokens if turn else 0
    assert said[0] == said[4096]
    if drafter == "ngram":
        assert accepted[4096] > accepted[0] + 30, "the second time is copied from the first"


def test_sizes_are_checked() -> None:
    for size in (-1, 1, 2**25):
        with pytest.raises(ValueError, match=f"lookup_store_tokens is {size}: it must be 0"):
            DraftConfig(lookup_store_tokens=size)
