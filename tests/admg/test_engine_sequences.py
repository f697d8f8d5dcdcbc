"""How a sequence ends, what it reports, and what becomes of requests that cannot run."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from admg.config import EngineConfig, SamplingParams
from admg.engine import Engine
from admg.model import Transformer
from admg.request import Completion, Request
from tests.admg.decoding import (
    PLAIN,
    budget_for,
    decode,
    drafting,
    engine_config,
    load,
    load_changed,
    random_prompts,
)

PROMPT = [200, 11, 5, 1, 77]
EVERY = {  # with nothing dropped, every draft is accepted whole
    "plain": engine_config(PLAIN),
    "drafts-kept": engine_config(drafting(0, draft_tokens=8)),
    "drafts-refused": engine_config(drafting(3, draft_tokens=3), max_num_seqs=4),
    "rejection": engine_config(drafting(2, draft_tokens=3, verification="token")),
    "block": engine_config(drafting(2, draft_tokens=3, verification="block"), max_num_seqs=4),
}


def text_of(ids: list[int]) -> str:
    """A toy detokenizer: stop strings such as "1><2" lie across tokens."""
    return "".join(f"<{i}>" for i in ids)


@pytest.fixture(scope="module")
def model(llama_checkpoint: Path) -> Transformer:
    return load(llama_checkpoint)


@pytest.fixture(scope="module")
def free(model: Transformer) -> list[int]:
    """What the prompt gives without any stop, greedily; its tokens are all different."""
    request = Request(PROMPT, SamplingParams(max_tokens=16, repetition_penalty=3.0))
    ids = decode(model, [request], engine_config())[""].token_ids
    assert len(set(ids)) == len(ids) == 16
    return ids


@pytest.fixture(params=EVERY)
def config(request: pytest.FixtureRequest) -> EngineConfig:
    return EVERY[request.param]


def run(model: Transformer, config: EngineConfig, eos: int = 1, **sampling: object) -> Completion:
    """One greedy sequence (repetition penalty 3, so that no token comes twice)."""
    params = SamplingParams(**({"max_tokens": 16, "repetition_penalty": 3.0} | sampling))
    request = Request(PROMPT, params, "row")
    return decode(model, [request], config, eos_token_ids=[eos], detokenize=text_of)["row"]


def test_length(model, free, config) -> None:
    done = run(model, config)
    assert (done.token_ids, done.finish_reason) == (free, "length")
    assert done.text == text_of(free)
    assert done.error_code is None and done.error_message is None


@pytest.mark.parametrize("at", [0, 1, 4, 15])
def test_eos_ends_after_itself_and_stays_out_of_the_text(model, free, config, at: int) -> None:
    done = run(model, config, eos=free[at])
    assert (done.token_ids, done.finish_reason) == (free[: at + 1], "stop")
    assert done.text == text_of(free[:at])


def test_eos_ignored(model, free, config) -> None:
    done = run(model, config, eos=free[4], ignore_eos=True)
    assert (done.token_ids, done.finish_reason) == (free, "length")
    assert done.text == text_of(free)


@pytest.mark.parametrize("at", [0, 3, 6])
def test_stop_token_ids(model, free, config, at: int) -> None:
    stops = (free[at], free[9], 319)
    done = run(model, config, stop_token_ids=stops, eos=free[5], ignore_eos=True)
    assert (done.token_ids, done.finish_reason) == (free[: at + 1], "stop")
    assert done.text == text_of(free[:at])


@pytest.mark.parametrize("at", [0, 4, 12])
def test_a_stop_string_inside_one_token(model, free, config, at: int) -> None:
    done = run(model, config, stop=(f"{free[at]}", "never"))
    assert (done.token_ids, done.finish_reason) == (free[: at + 1], "stop")
    assert done.text == text_of(free[:at]) + "<"


@pytest.mark.parametrize("at", [1, 5, 15])
def test_a_stop_string_across_tokens(model, free, config, at: int) -> None:
    """Its last character comes with token `at`, its first with the one before."""
    done = run(model, config, stop=(f"{free[at - 1]}><{str(free[at])[0]}",))
    assert (done.token_ids, done.finish_reason) == (free[: at + 1], "stop")
    assert done.text == text_of(free[: at - 1]) + "<"


def test_the_first_of_several_stop_strings_cuts_the_text(model, free, config) -> None:
    """All of them are completed by the same token."""
    stops = (f"{free[6]}>", f"{free[5]}><{free[6]}", f"<{free[6]}>")
    done = run(model, config, stop=stops)
    assert done.token_ids == free[:7]
    assert done.text == text_of(free[:5]) + "<"


def test_stop_strings_of_the_prompt_do_not_count(model, free, config) -> None:
    done = run(model, config, stop=(text_of(PROMPT[-1:]),))
    assert done.finish_reason == "length"


def test_min_tokens_bans_eos_and_stop_tokens_before(model, free, config) -> None:
    """The law itself changes: a banned token is not drawn, and not drawn-and-ignored."""
    done = run(model, config, eos=free[2], stop_token_ids=(free[0],), min_tokens=6)
    assert len(done.token_ids) >= 6
    assert not {free[0], free[2]} & set(done.token_ids[:6])
    last = done.token_ids[-1]
    assert done.finish_reason == ("stop" if last in (free[0], free[2]) else "length")
    for at, reason in ((5, "stop"), (4, "length")):  # min_tokens=5: position 5 is the first free
        done = run(model, config, eos=free[at], min_tokens=5, max_tokens=6)
        assert done.finish_reason == reason
        assert (done.token_ids == free[:6]) == (reason == "stop")


def test_min_tokens_puts_stop_strings_off(model, free, config) -> None:
    for at in (1, 4):
        done = run(model, config, stop=(f"<{free[at]}>",), min_tokens=at + 1)
        assert (done.token_ids, done.finish_reason) == (free, "length")
        assert done.text == text_of(free)
    done = run(model, config, stop=(f"<{free[2]}>", f"<{free[8]}>"), min_tokens=5)
    assert (done.token_ids, done.finish_reason) == (free[:9], "stop")
    assert done.text == text_of(free[:8])


def test_one_token(model, free, config) -> None:
    done = run(model, config, max_tokens=1)
    assert (done.token_ids, done.finish_reason) == (free[:1], "length")
    stats = done.stats
    assert (stats.prompt_tokens, stats.completion_tokens, stats.num_spec_steps) == (5, 1, 0)
    assert stats.mean_acceptance_length is None and stats.draft_acceptance_rate is None
    assert stats.speedup is None and stats.speedup_end_to_end is None
    assert not any(stats.acceptance_histogram) and stats.drafter_tokens == {}
    assert run(model, config, max_tokens=1, eos=free[0]).finish_reason == "stop"


@pytest.mark.parametrize("how", ["eos", "stop"])
def test_a_stop_inside_an_accepted_draft_is_counted_once(model, free, how: str) -> None:
    """The first round drafts tokens 1..8, all as the target's; the completion ends with token 4."""
    ending = {"eos": free[4]} if how == "eos" else {"stop": (f"<{free[4]}>",)}
    done = run(model, EVERY["drafts-kept"], **ending)
    stats = done.stats
    assert done.token_ids == free[:5] and stats.completion_tokens == 5
    assert stats.num_spec_steps == 1 and stats.mean_acceptance_length == 4
    assert stats.num_accepted_draft_tokens == 4 and stats.acceptance_histogram == [0, 0, 0, 0, 1]
    assert stats.num_draft_tokens == sum(stats.drafter_tokens.values()) <= 8


def mixed_requests(model: Transformer) -> list[Request]:
    prompts = random_prompts(model.config.vocab_size, [3, 50, 17, 80, 1, 33, 9, 26, 44])
    laws = [
        SamplingParams(max_tokens=18, temperature=1.0, seed=2),
        SamplingParams(max_tokens=25, stop=("7", "<2")),
        SamplingParams(max_tokens=2, temperature=0.6),
    ]
    return [Request(p, laws[i % 3], str(i)) for i, p in enumerate(prompts)]


def test_statistics_add_up(model, config) -> None:
    requests = mixed_requests(model)
    engine = Engine(model, config, eos_token_ids=[1], detokenize=text_of)
    done = {c.key: c for c in engine.generate(requests)}
    total: Counter[str] = Counter()
    for request in requests:
        completion = done[request.key]
        s = completion.stats
        assert s.prompt_tokens == len(request.prompt_token_ids)
        assert s.completion_tokens == len(completion.token_ids)
        assert s.num_spec_steps == sum(s.acceptance_histogram)
        assert s.num_draft_tokens == sum(s.drafter_tokens.values())
        assert s.num_accepted_draft_tokens == sum(
            i * n for i, n in enumerate(s.acceptance_histogram)
        )
        assert s.num_accepted_draft_tokens <= s.num_draft_tokens
        committed = s.completion_tokens - 1  # the prefill gives the first token
        if s.num_spec_steps:
            assert s.mean_acceptance_length == pytest.approx(committed / s.num_spec_steps)
            assert s.speedup > 0 and s.speedup_end_to_end > 0 and s.decode_seconds > 0
        # A step commits what it accepts and one more, but for a last one that a stop cuts short.
        short = s.num_spec_steps + s.num_accepted_draft_tokens - committed
        assert short in ((0, 1) if completion.finish_reason == "stop" else (0,))
        if s.num_draft_tokens:
            rate = s.num_accepted_draft_tokens / s.num_draft_tokens
            assert s.draft_acceptance_rate == pytest.approx(rate)
        else:
            assert s.draft_acceptance_rate is None
        assert min(s.prefill_seconds, s.queue_seconds, s.decode_seconds) >= 0
        assert not s.audited and s.audit_identical is None
        for name in ("prompt_tokens", "completion_tokens", "num_spec_steps", "num_draft_tokens"):
            total[name] += getattr(s, name)
        total["num_accepted_draft_tokens"] += s.num_accepted_draft_tokens
    assert {c.finish_reason for c in done.values()} == {"stop", "length"}
    counters = engine.counters
    assert {name: getattr(counters, name) for name in total} == dict(total)
    assert counters.num_running == counters.num_waiting == 0


def test_plain_decoding_is_its_own_yardstick(model) -> None:
    stats = run(model, EVERY["plain"]).stats
    assert stats.mean_acceptance_length == 1 and stats.acceptance_histogram == [15]
    assert stats.speedup == pytest.approx(1) and stats.speedup_end_to_end == pytest.approx(1)
    assert stats.num_draft_tokens == 0 and stats.draft_acceptance_rate is None


def test_without_a_detokenizer_there_is_no_text(model) -> None:
    request = Request(PROMPT, SamplingParams(max_tokens=3), "row")
    assert decode(model, [request], engine_config())["row"].text is None


BAD = {
    "prompt_empty": ([], {}),
    "prompt_too_long by length": ([5] * 300, {"max_tokens": 213}),
    "prompt_too_long by budget": ([5] * 150, {"max_tokens": 50}),
    "bad_parameter: token beyond": ([5, 320], {}),
    "bad_parameter: token below": ([5, -1], {}),
    "bad_parameter: stop token": ([5], {"stop_token_ids": (320,)}),
    "bad_parameter: no detokenizer": ([5], {"stop": ("x",)}),
}


def test_bad_requests_are_completions_and_the_others_go_on(model, config) -> None:
    good = [Request(PROMPT, SamplingParams(max_tokens=9), f"good {i}") for i in range(3)]
    bad = [Request(ids, SamplingParams(**fields), key) for key, (ids, fields) in BAD.items()]
    config = replace(config, kv_budget_bytes=budget_for(model, 192))
    engine = Engine(model, config, eos_token_ids=[])
    rows = [good[0], *bad[:4], good[1], *bad[4:], good[2]]
    handles = {request.key: engine.submit(request) for request in rows}
    assert len(set(handles.values())) == len(rows)
    done: list[Completion] = []
    while engine.has_work:
        done += engine.step()
    assert {c.key: c.handle for c in done} == handles and len(done) == len(rows)
    by_key = {c.key: c for c in done}
    for request in bad:
        completion = by_key[request.key]
        assert completion.finish_reason == "error" and completion.token_ids == []
        assert completion.error_code == request.key.split()[0].strip(":")
        assert completion.error_message and not completion.text
        assert completion.stats.prompt_tokens == len(request.prompt_token_ids)
        assert completion.stats.completion_tokens == 0
    assert len({tuple(by_key[r.key].token_ids) for r in good}) == 1
    assert all(by_key[r.key].finish_reason == "length" for r in good)


def test_the_longest_sequence_that_fits_runs(model) -> None:
    limits = engine_config(drafting(2), max_model_len=64)
    fits = Request([5] * 50, SamplingParams(max_tokens=14), "fits")
    beyond = Request([5] * 50, SamplingParams(max_tokens=15), "beyond")
    done = decode(model, [fits, beyond], limits)
    assert len(done["fits"].token_ids) == 14
    assert done["beyond"].error_code == "prompt_too_long"
    assert "64" in done["beyond"].error_message


@pytest.mark.parametrize(
    ("sizes", "name"),
    [({"max_model_len": 513}, "max_model_len"), ({"kv_budget_bytes": 1000}, "kv")],
)
def test_configurations_that_the_model_cannot_serve(model, sizes: dict, name: str) -> None:
    with pytest.raises(ValueError, match=name) as error:
        Engine(model, engine_config(**sizes), eos_token_ids=[])
    assert str(next(iter(sizes.values()))) in str(error.value)


@pytest.mark.parametrize("where", ["embed", "norm", "head"])
def test_a_model_of_nans_gives_errors(llama_checkpoint: Path, config, where: str) -> None:
    broken = load_changed(llama_checkpoint, lambda w: getattr(w, where).fill_(torch.nan))
    done = decode(broken, mixed_requests(broken), config, detokenize=text_of)
    for completion in done.values():
        assert completion.finish_reason == "error" and completion.token_ids == []
        assert completion.error_code == "model_output_invalid" and completion.error_message
