"""A short measured sample: a few of the job's own prompts, decoded here, to know the pace."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from admg.request import Completion, Request

if TYPE_CHECKING:
    from admg.config import SamplingParams
    from pipeline.factory import EngineFactory, EngineLike

PROMPTS = 8
TOKENS = 32


@dataclass(frozen=True, slots=True)
class Sample:
    """What was measured. Rates are None where nothing was timed.

    `prefill_tokens_per_second` and `decode_tokens_per_second` are those of one actor that holds
    `sequences` together; `ended` of them came to their own end before `max_tokens`.
    """

    where: str
    sequences: int
    max_tokens: int
    ended: int
    prompt_tokens: int
    completion_tokens: int
    load_seconds: float
    seconds: float
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None
    mean_acceptance_length: float | None
    speedup: float | None


def measure(
    factory: EngineFactory, prompts: Sequence[Sequence[int]], sampling: SamplingParams
) -> Sample | None:
    """Load the model in this process and decode a few prompts; None where there are none.

    Raises:
        ValueError: a model that cannot be loaded here, or a sample of which every row fails.
    """
    if not prompts:
        return None
    began = time.perf_counter()
    engine = factory.build()
    law = replace(sampling, max_tokens=min(sampling.max_tokens, TOKENS), min_tokens=0)
    # The engine's own warm-up belongs to loading, and so does the first pass of every kernel.
    _decode(engine, [list(prompts[0])], replace(law, max_tokens=2))
    loaded = time.perf_counter()
    prefill = engine.counters.prefill_seconds
    cached = engine.counters.num_cached_tokens
    done = _decode(engine, [list(p) for p in prompts], law)
    seconds = time.perf_counter() - loaded
    prefill = engine.counters.prefill_seconds - prefill
    cached = engine.counters.num_cached_tokens - cached
    good = [c for c in done if c.finish_reason != "error"]
    if not good:
        raise ValueError(f"every row of the sample fails: {done[0].error_message}")
    read = sum(c.stats.prompt_tokens for c in good)
    made = sum(c.stats.completion_tokens for c in good)
    steps = sum(c.stats.num_spec_steps for c in good)
    in_steps = sum((c.stats.mean_acceptance_length or 0.0) * c.stats.num_spec_steps for c in good)
    timed = [c.stats for c in good if c.stats.speedup is not None]
    decoding = sum(s.decode_seconds for s in timed)
    gained = sum((s.speedup or 0.0) * s.decode_seconds for s in timed)
    return Sample(
        where=_where(),
        sequences=len(done),
        max_tokens=law.max_tokens,
        ended=sum(c.finish_reason == "stop" for c in good),
        prompt_tokens=read,
        completion_tokens=made,
        load_seconds=loaded - began,
        seconds=seconds,
        prefill_tokens_per_second=_ratio(read - cached, prefill),
        # The first token of a row comes out of its prefill.
        decode_tokens_per_second=_ratio(made - len(good), seconds - prefill),
        mean_acceptance_length=_ratio(in_steps, steps),
        speedup=_ratio(gained, decoding),
    )


def _decode(
    engine: EngineLike, prompts: list[list[int]], sampling: SamplingParams
) -> list[Completion]:
    for number, ids in enumerate(prompts):
        engine.submit(Request(ids, sampling, key=f"sample-{number}"))
    done: list[Completion] = []
    while engine.has_work:
        done += engine.step()
    return done


def _ratio(tokens: float, seconds: float) -> float | None:
    return tokens / seconds if tokens > 0 and seconds > 0 else None


def _where() -> str:
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"this machine's CPU, {torch.get_num_threads()} threads"
