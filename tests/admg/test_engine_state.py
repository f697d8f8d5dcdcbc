"""An engine's cache is at all times what a pass from scratch would write (T8), and broken state is
noticed.

Both reach into the engine's private attributes: the scheduler's sequences and the arena are the
state that they are about.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from admg.config import DraftConfig
from admg.engine import Engine
from admg.request import Request
from tests.admg.decoding import PLAIN, drafting, engine_config, load, random_prompts
from tests.admg.plain_cache import decode_with_plain_cache
from tests.admg.test_engine_invariance import LAWS, LENGTHS


@pytest.mark.parametrize(
    "draft",
    [
        drafting(3),
        drafting(99, keep_first=0, keep_last=0, draft_tokens=6),
        drafting(2, verification="token"),
        drafting(1, exit_threshold=0.5),
    ],
    ids=["three", "all", "rejection", "exit"],
)
@pytest.mark.parametrize("family", ["llama", "qwen3-ungrouped-biases"])
def test_the_cache_is_what_a_pass_from_scratch_writes(
    checkpoints: Callable[[str], Path], family: str, draft: DraftConfig
) -> None:
    """After every round, in every layer, those that the drafts left out included."""
    model = load(checkpoints(family))
    prompts = random_prompts(model.config.vocab_size, LENGTHS, seed=3)
    config = engine_config(draft, max_num_seqs=3, prefill_tokens=33)
    engine = Engine(model, config, eos_token_ids=[])
    for i, prompt in enumerate(prompts[:6]):
        engine.submit(Request(prompt, replace(LAWS[i % 3], max_tokens=12), str(i)))
    assert decode_with_plain_cache(engine, model) > 10 * model.config.num_layers
    assert engine.counters.num_accepted_draft_tokens < engine.counters.num_draft_tokens


def computed_ahead(s) -> None:
    s.computed += 1


def computed_behind(s) -> None:
    s.computed -= 1


def token_lost(s) -> None:
    s.tokens.pop()


def slots_shared(s) -> None:
    s.extent = replace(s.extent, start=0)


def slots_too_few(s) -> None:
    s.extent = replace(s.extent, capacity=len(s.tokens) - 1)


def ran_past_its_end(s) -> None:
    s.request = replace(s.request, sampling=replace(s.request.sampling, max_tokens=1))


@pytest.mark.parametrize(
    "corrupt",
    [computed_ahead, computed_behind, token_lost, slots_shared, slots_too_few, ran_past_its_end],
)
@pytest.mark.parametrize("draft", [PLAIN, drafting(2)], ids=["plain", "admg"])
def test_broken_state_is_noticed(
    llama_checkpoint: Path, draft: DraftConfig, corrupt: Callable
) -> None:
    model = load(llama_checkpoint)
    prompts = random_prompts(model.config.vocab_size, LENGTHS)[:3]
    engine = Engine(model, engine_config(draft, max_num_seqs=3), eos_token_ids=[])
    for prompt, law in zip(prompts, LAWS, strict=False):
        engine.submit(Request(prompt, law))
    engine.step()
    engine.step()
    corrupt(engine._scheduler.decoding()[1])
    # A draft pass beyond the extent is refused before the round's check is reached.
    noticed = (AssertionError, ValueError) if corrupt is slots_too_few else AssertionError
    with pytest.raises(noticed):
        engine.step()
