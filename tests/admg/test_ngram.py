"""Lookup drafts: where they copy from, and that they change no completion."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from admg.checkpoint import Weights
from admg.config import DraftConfig, SamplingParams, Verification
from admg.drafters.draft import Draft
from admg.drafters.ngram import NgramDrafter
from admg.drafters.ngram_index import LENGTHS, NgramIndex, copy_from
from admg.engine import Engine
from admg.model import Transformer
from tests.admg.decoding import (
    assert_identical,
    decode,
    engine_config,
    load_changed,
    random_prompts,
    requests_for,
)


def brute_force(tokens: list[int]) -> tuple[int, int] | None:
    """The latest earlier occurrence of the longest suffix, by looking everywhere."""
    for n in LENGTHS:
        for at in range(len(tokens) - 1, n - 1, -1):
            if tokens[at - n : at] == tokens[-n:]:
                return at, n
    return None


@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.integers(0, 60), max_size=5))
def test_the_index_finds_what_a_search_finds(tokens: list[int], cuts: list[int]) -> None:
    index = NgramIndex()
    for cut in sorted(c for c in cuts if c <= len(tokens)):
        index.extend(tokens[:cut])
    index.extend(tokens)
    assert index.match(tokens) == brute_force(tokens)


def test_copies_go_on_with_themselves() -> None:
    assert copy_from([1, 2, 3, 4], 1, 2) == [2, 3]
    assert copy_from([1, 2, 3, 4], 2, 5) == [3, 4, 3, 4, 3]


def forget(weights: Weights) -> None:
    """Leave only the embedding and the head: each token follows from the one before it alone."""
    for layer in weights.layers:
        layer.o.zero_()
        layer.down.zero_()


@pytest.fixture(scope="module")
def model(llama_checkpoint: Path) -> Transformer:
    """A model that runs into a loop within some dozen tokens."""
    return load_changed(llama_checkpoint, forget)


@pytest.mark.parametrize("verification", get_args(Verification))
def test_sequences_that_repeat_themselves_are_drafted(model: Transformer, verification) -> None:
    prompts = random_prompts(model.config.vocab_size, [12, 40, 3, 77])
    requests = requests_for(prompts, SamplingParams(max_tokens=200))
    draft = DraftConfig(drafter="ngram", draft_tokens=5, verification=verification)
    done = decode(model, requests, engine_config(draft, max_num_seqs=2))
    plain = decode(model, requests, engine_config())
    keys = [r.key for r in requests]
    assert_identical(
        model, requests, [done[k].token_ids for k in keys], [plain[k].token_ids for k in keys]
    )
    stats = [done[k].stats for k in keys]
    # Once in the loop every draft is right, and five tokens long.
    assert all(s.num_accepted_draft_tokens > 20 for s in stats)
    assert all(s.acceptance_histogram[5] > 3 for s in stats)
    assert all(set(s.drafter_tokens) <= {"ngram"} for s in stats)
    assert all(s.dropped_attention_layers == [] for s in stats)
    assert all(s.attention_similarity == [] for s in stats), "nothing was measured for nothing"


def test_drafts_end_with_a_stop_token(model: Transformer) -> None:
    """What follows a stop token in the text would be thrown away."""
    prompt = [5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 5, 6]
    request = requests_for([prompt], SamplingParams(max_tokens=30, stop_token_ids=(8,)))
    draft = DraftConfig(drafter="ngram", draft_tokens=6)
    engine = Engine(model, engine_config(draft), eos_token_ids=[])
    engine.submit(request[0])
    engine._scheduler.admit()
    (s,) = engine._scheduler.running
    drafter, drafted = NgramDrafter(False, 0), Draft.empty(1)
    drafter.draft([s], [drafter.propose(s)], [6], drafted)
    assert drafted.tokens == [[7, 8]] and drafted.sources == [[("ngram", 2)]]
