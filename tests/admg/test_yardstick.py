"""What a row's speedup is held up to: rounds that are plain on purpose cost what plain ones do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from admg import pass_cost
from admg.config import SamplingParams
from admg.controller import Choice, Controller
from admg.draft_rules import WindowRule
from admg.drafting import Drafting
from admg.engine import Engine
from admg.model import Transformer
from admg.pass_cost import PassCost
from admg.request import Completion, Request
from tests.admg.decoding import (
    assert_identical,
    decode,
    drafting,
    engine_config,
    load,
    random_prompts,
    requests_for,
)

EVERY = 3
LAWS = [SamplingParams(max_tokens=20), SamplingParams(max_tokens=20, temperature=1.0, seed=8)]


@pytest.fixture(scope="module")
def model(llama_checkpoint: Path) -> Transformer:
    return load(llama_checkpoint)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("admg.engine.PLAIN_EVERY", EVERY)


def watching(
    engine: Engine, requests: list[Request], monkeypatch: pytest.MonkeyPatch, forward: Any
) -> dict[str, Completion]:
    """Decode with another `forward` of the model once the warm-up is over; undoes all patches."""
    for request in requests:
        engine.submit(request)
    done = {c.key: c for c in engine.step()}
    monkeypatch.setattr(engine._model, "forward", forward)
    while engine.has_work:
        done |= {c.key: c for c in engine.step()}
    monkeypatch.undo()
    return done


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(
    ("verification", "rounds"), [("shared", "host"), ("token", "host"), ("shared", "device")]
)
def test_nobody_learns_from_a_yardstick(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, verification: str, rounds: str
) -> None:
    """Its pass is unwatched, all other rounds are watched, and the text is plain decoding's."""
    prompts = random_prompts(model.config.vocab_size, [60, 33, 25, 41])
    rejection = verification == "token"
    requests = requests_for(prompts, [LAWS[0 if rejection else i % 2] for i in range(4)])
    windows = WindowRule(share=0.5, window=8)
    remake = 4 if rounds == "host" else None  # plans that are made anew are the host's affair
    draft = drafting(1, windows=windows, remake_every=remake, verification=verification)
    passes: list[tuple[int, bool]] = []
    forward = model.forward

    def noted(batch: Any, *args: Any, **more: Any) -> Any:
        watched = bool(more.get("observers")) or more.get("heads") is not None
        verifies = not batch.segments or batch.segments[0].start  # the device's have none
        if more.get("members") is None and verifies:  # no draft, and no prompt
            counts = [s.count for s in batch.segments] or [batch.attention.queries]
            passes.append((max(counts), watched))
        return forward(batch, *args, **more)

    config = engine_config(draft, max_num_seqs=4, rounds=rounds)
    engine = Engine(model, config, eos_token_ids=[])
    done = watching(engine, requests, monkeypatch, noted)
    assert (engine.graphs is not None) == (rounds == "device")
    # Rounds are counted from 1, and the first one is over.
    plain = [i for i in range(len(passes)) if (i + 2) % EVERY == 0]
    assert len(plain) > 2
    assert [i for i, (_, watched) in enumerate(passes) if not watched] == plain
    assert all(passes[i][0] == 1 for i in plain)
    reference = decode(model, requests, engine_config())
    ids = [[d[r.key].token_ids for r in requests] for d in (done, reference)]
    assert_identical(model, requests, *ids)


@pytest.mark.parametrize("tries", [False, True], ids=["plain", "self-drafts"])
def test_plain_is_plain_where_the_controller_chooses(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, tries: bool
) -> None:
    """Nobody looks on while it drafts nothing of the model's own; else holes are learned."""
    prompts = random_prompts(model.config.vocab_size, [30, 20])
    requests = requests_for(prompts, [LAWS[0], LAWS[1]])
    choose = Controller.choose

    def chosen(self: Controller, sequences: Any, *args: Any) -> Choice:
        choose(self, sequences, *args)
        count = len(sequences)
        return Choice([0] * count, [min(2, s.draft_limit) * tries for s in sequences])

    monkeypatch.setattr(Controller, "own_may_pay", lambda *_: True)
    monkeypatch.setattr(Controller, "choose", chosen)
    watched: list[bool] = []
    forward = model.forward

    def noted(batch: Any, *args: Any, **more: Any) -> Any:
        if more.get("members") is None and batch.segments[0].start:
            watched.append(bool(more.get("observers")))
        return forward(batch, *args, **more)

    draft = drafting(2, drafter="auto", windows=None)
    engine = Engine(model, engine_config(draft, max_num_seqs=2), eos_token_ids=[])
    done = watching(engine, requests, monkeypatch, noted)
    assert len(watched) > 5 and any(watched) == tries
    reference = decode(model, requests, engine_config())
    ids = [[d[r.key].token_ids for r in requests] for d in (done, reference)]
    assert_identical(model, requests, *ids)


@pytest.mark.parametrize("windows", [None, WindowRule(share=0.5, window=8)])
def test_looking_up_and_trying_limits_is_no_part_of_a_plain_step(
    model: Transformer,
    monkeypatch: pytest.MonkeyPatch,
    often: None,
    windows: WindowRule | None,
) -> None:
    """The clock goes on while proposals are made, by 100 seconds, and at no other time."""
    now = [0.0]
    opened = Drafting.open
    seen: list[tuple[float, float]] = []

    def slow(self: Drafting, *args: Any) -> Any:
        now[0] += 100.0
        return opened(self, *args)

    def observe(
        self: PassCost, size: int, context: float, seconds: float, tokens: float = 1
    ) -> None:
        seen.append((seconds, tokens))

    monkeypatch.setattr("admg.warm_up.WarmUp.own_pass", lambda *_: 0.9e-3)
    monkeypatch.setattr("admg.warm_up.WarmUp.target_pass", lambda *a: 1e-3 + 1e-6 * a[-1])
    monkeypatch.setattr("admg.controller.Controller.own_may_pay", lambda *_: True)
    monkeypatch.setattr(Drafting, "open", slow)
    monkeypatch.setattr(PassCost, "observe", observe)
    monkeypatch.setattr("admg.engine.time", SimpleNamespace(perf_counter=lambda: now[0]))
    draft = drafting(0, drafter="auto", windows=windows, lookup_store_tokens=0)
    engine = Engine(model, engine_config(draft, max_num_seqs=2), eos_token_ids=[])
    prompts = random_prompts(model.config.vocab_size, [40, 30])
    list(engine.generate(requests_for(prompts, LAWS[1])))
    plain = [seconds for seconds, tokens in seen if tokens == 1]
    assert plain and set(plain) == {0.0}
    # Not only those that are plain on purpose: the controller's own are as plain.
    assert len(plain) > engine._rounds // EVERY


def test_a_disturbed_warm_up_is_put_right_before_anything_is_chosen(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every pass seemed to take a thousand times as long as it does."""
    fastest = pass_cost._fastest
    monkeypatch.setattr(pass_cost, "_fastest", lambda *args: 1000 * fastest(*args))
    chosen: list[float] = []
    choose = Controller.choose

    def noted(self: Controller, *args: Any) -> Choice:
        chosen.append(self.target.slowness)
        return choose(self, *args)

    monkeypatch.setattr(Controller, "choose", noted)
    prompts = random_prompts(model.config.vocab_size, [30, 20])
    requests = requests_for(prompts, [LAWS[0]] * 2)
    decode(model, requests, engine_config(drafting(2, drafter="auto"), max_num_seqs=2))
    assert chosen and max(chosen) < 0.5
