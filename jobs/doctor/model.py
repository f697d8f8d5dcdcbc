"""A model: whether it can be loaded here, and what the engine would make of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from admg.checkpoint import load_dtype
from admg.config import DraftConfig, EngineConfig, SamplingParams
from admg.families import ModelConfig, read_model_config
from admg.kv_arena import SLOT_GRAIN, bytes_per_slot
from admg.memory import CPU_SHARE, CUDA_SHARE, arena_size
from jobs.doctor.finding import Finding, size
from pipeline.factory import EngineLike, ModelFactory
from pipeline.redaction import redacted

_CONTEXT = 1024
_PROMPTS, _TOKENS = 8, 32
# Below this share dropping attention layers cannot save much of what a step reads.
_MUCH = 0.4


def device() -> str:
    """Where the engine would put the model."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def dtype() -> str:
    """What `--dtype auto` is here."""
    return str(load_dtype("auto", device())).removeprefix("torch.")


def examine(model: str, free: int, load: bool) -> Iterator[Finding]:
    """The checkpoint, what the engine would choose, and with `load` what it does.

    Args:
        model: a folder, a URI, or demo.
        free: bytes of the device's memory.
        load: load it and decode a few prompts.
    """
    from jobs.demo_model import DemoModelError, demo_model

    told = redacted(model)
    try:
        folder = str(demo_model()) if model == "demo" else _folder(model)
        shape = read_model_config(folder)
        factory = ModelFactory(folder, EngineConfig(draft=DraftConfig(drafter="auto")))
        longest = factory.check()
        tokenizer = factory.tokenizer()
    except (ValueError, OSError, DemoModelError) as error:
        yield Finding("model", "problem", redacted(str(error).splitlines()[0]), {"model": told})
        return
    chat = _has_template(tokenizer)
    facts = {
        "model": told,
        "parameters": shape.num_parameters,
        "layers": shape.num_layers,
        "kv_heads": shape.num_kv_heads,
        "longest": longest,
        "chat_template": chat,
    }
    text = (
        f"{told}: {shape.num_parameters / 1e9:.2f}e9 parameters, {shape.num_layers} layers, "
        f"sequences of up to {longest} tokens, {'a' if chat else 'no'} chat template"
    )
    yield Finding("model", "ok", text, facts)
    yield choice(shape, free)
    if load:
        yield measured(factory)


def _folder(model: str) -> str:
    from pipeline.weights import local_folder, remote_checkpoint

    remote = remote_checkpoint(model)
    return local_folder(model) if remote is None else str(remote.folder(weights=False))


def _has_template(tokenizer: Any) -> bool:
    try:
        return bool(tokenizer.chat([{"role": "user", "content": "hello"}]))
    except ValueError:  # transformers: there is none
        return False


def choice(shape: ModelConfig, free: int) -> Finding:
    """Sizes that the engine would choose with so much free memory."""
    kind, where, engine = load_dtype("auto", device()), device(), EngineConfig()
    weights = shape.num_parameters * kind.itemsize
    share = CUDA_SHARE if where == "cuda" else CPU_SHARE
    budget = int(share * (free - weights))
    facts: dict[str, Any] = {
        "device": where,
        "dtype": dtype(),
        "weights_bytes": weights,
        "kv_budget_bytes": max(0, budget),
        "max_num_seqs": engine.max_num_seqs,
    }
    head = f"{dtype()} on {where}, {size(weights)} of weights"
    if budget <= 0:
        return Finding("engine", "problem", f"{head}, and {size(free)} are free", facts)
    sized = EngineConfig(kv_budget_bytes=budget)
    try:
        arena = arena_size(shape, kind, where, sized)
    except ValueError as error:
        return Finding("engine", "problem", f"{head}: {error}", facts)
    slot = bytes_per_slot(shape, kind)
    extent = -(-min(_CONTEXT, arena.max_model_len) // SLOT_GRAIN) * SLOT_GRAIN
    fit = budget // slot // extent
    batch = min(fit, engine.max_num_seqs)
    part = batch * extent * slot / (batch * extent * slot + weights)
    facts |= {
        "max_model_len": arena.max_model_len,
        "sequences_that_fit": fit,
        "sequence_tokens": extent,
        "kv_share_of_step": part,
    }
    text = (
        f"{head}, a KV cache of up to {size(budget)}: {fit} sequences of {extent} tokens fit; "
        f"--max-num-seqs is {engine.max_num_seqs} unless you say otherwise"
    )
    text += f". At a batch of {batch} the KV cache is {part:.0%} of what a step reads"
    if where == "cuda":
        text += f": dropping attention layers {'may pay' if part >= _MUCH else 'saves little'}"
    text += "; --drafter auto finds out what pays"
    return Finding("engine", "ok", text, facts)


@dataclass(slots=True)
class _Remembered:
    """A factory that keeps the engine it has built."""

    factory: ModelFactory
    engines: list[EngineLike] = field(default_factory=list)

    def build(self, max_num_seqs: int | None = None) -> EngineLike:
        self.engines.append(self.factory.build(max_num_seqs))
        return self.engines[-1]


def measured(factory: ModelFactory) -> Finding:
    """Load the model, decode a few prompts, and ask the controller what it has chosen."""
    from jobs.demo_prompts import demo_source
    from jobs.measured_sample import measure

    rows = [t for part in demo_source(_PROMPTS).parts for t in part.tables()]
    texts = [text for table in rows for text in table["prompt"].to_pylist()]
    longest = (factory.check() or 2048) - _TOKENS
    prompts = [ids[:longest] for ids in factory.tokenizer().encode(texts, special=True)]
    kept: Any = _Remembered(factory)
    try:
        sample = measure(kept, prompts, SamplingParams(max_tokens=_TOKENS))
    except (ValueError, RuntimeError, MemoryError) as error:
        return Finding("drafter", "problem", f"the model cannot be loaded here: {error}")
    explained = kept.engines[0].explain()
    if sample is None or explained is None:
        return Finding("drafter", "note", "nothing was measured")
    facts = {
        "rounds_by_choice": explained.rounds,
        "self_drafts_may_pay": any(name.startswith("self") for name in explained.costs),
        "load_seconds": sample.load_seconds,
        "decode_tokens_per_second": sample.decode_tokens_per_second,
        "mean_acceptance_length": sample.mean_acceptance_length,
        "speedup": sample.speedup,
    }
    rounds = ", ".join(f"{n} {name}" for name, n in sorted(explained.rounds.items()))
    speed = sample.decode_tokens_per_second or 0.0
    text = (
        f"loaded in {sample.load_seconds:.0f} s; {len(prompts)} prompts at {speed:.1f} tokens/s; "
        f"rounds that auto chose: {rounds}"
    )
    if not facts["self_drafts_may_pay"]:
        text += "; drafts by the model's own layers cannot pay here"
    return Finding("drafter", "ok", text, facts)
