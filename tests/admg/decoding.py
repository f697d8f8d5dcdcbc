"""Engines, prompts, oracles and comparisons that the engine's tests share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from admg.batch import RaggedBatch
from admg.checkpoint import Weights, load_weights
from admg.config import DraftConfig, EngineConfig, LowBit, SamplingParams
from admg.draft_rules import DropRule
from admg.engine import Engine
from admg.families import read_model_config
from admg.kv_arena import KVArena, bytes_per_slot
from admg.model import Transformer
from admg.noise import exponential, position_key, stream, token_hash
from admg.request import Completion, Request
from admg.sampling import LawRow, Sampler

logger = logging.getLogger(__name__)

PLAIN = DraftConfig(drafter="none")


def load(path: Path, low_bit: LowBit | None = None) -> Transformer:
    """Our model in fp32 on the CPU."""
    return Transformer.load(path, dtype=torch.float32, device="cpu", low_bit=low_bit)


def load_changed(path: Path, change: Callable[[Weights], object]) -> Transformer:
    """Our model with other weights than the folder's."""
    config = read_model_config(path)
    weights = load_weights(path, config, torch.float32, "cpu")
    change(weights)
    return Transformer(config, weights)


def load_oracle(path: Path) -> transformers.PreTrainedModel:
    """transformers' model in fp32."""
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def drafting(count: int | None = None, *, draft_tokens: int = 4, **fields: Any) -> DraftConfig:
    """A draft configuration: the number of dropped layers or, among `fields`, fields of its rule.

    Fields of `DropRule` and of `DraftConfig` have different names, so both may stand in `fields`.
    """
    rule = {name: fields.pop(name) for name in list(fields) if hasattr(DropRule, name)}
    drop = DropRule(count=count, **rule)
    return DraftConfig(draft_tokens=draft_tokens, drop=drop, **fields)


def engine_config(draft: DraftConfig = PLAIN, **sizes: Any) -> EngineConfig:
    """An engine configuration that checks the invariants after every round."""
    return EngineConfig(**({"max_num_seqs": 1, "check": True, "draft": draft} | sizes))


def random_prompts(
    vocab_size: int, lengths: Sequence[int], *, seed: int = 7, special: int | None = 1
) -> list[list[int]]:
    """Random tokens; the `special` id (pad and EOS of the tiny models) stands in most prompts."""
    generator = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(2, vocab_size, (n,), generator=generator).tolist() for n in lengths]
    if special is not None:
        for i, prompt in enumerate(prompts):
            for at in {0: (0,), 1: (len(prompt) // 2, len(prompt) - 1), 2: ()}[i % 3]:
                prompt[at] = special
    return prompts


def requests_for(
    prompts: Sequence[list[int]], laws: SamplingParams | Sequence[SamplingParams]
) -> list[Request]:
    """One request a prompt, its key the prompt's index; one law for all, or one for each."""
    if isinstance(laws, SamplingParams):
        laws = [laws] * len(prompts)
    return [Request(p, law, str(i)) for i, (p, law) in enumerate(zip(prompts, laws, strict=True))]


def decode(
    model: Transformer, requests: Sequence[Request], config: EngineConfig, **fields: Any
) -> dict[str, Completion]:
    """Completions by key of a fresh engine; `fields` are further arguments of `Engine`."""
    engine = Engine(model, config, **({"eos_token_ids": []} | fields))
    done = {c.key: c for c in engine.generate(requests)}
    assert sorted(done) == sorted(r.key for r in requests)
    assert not engine.has_work
    return done


@torch.inference_mode()
def oracle_greedy(
    oracle: transformers.PreTrainedModel, request: Request, eos: Sequence[int] = ()
) -> list[int]:
    """What transformers' `generate` gives for a greedy request alone, EOS included."""
    sampling = request.sampling
    assert sampling.greedy
    oracle.generation_config = transformers.GenerationConfig(
        do_sample=False,
        max_new_tokens=sampling.max_tokens,
        min_new_tokens=sampling.min_tokens or None,
        repetition_penalty=sampling.repetition_penalty,
        eos_token_id=list(eos) or None,
        pad_token_id=0,
    )
    ids = torch.tensor([request.prompt_token_ids])
    output = oracle.generate(ids, attention_mask=torch.ones_like(ids))
    return output[0, ids.shape[1] :].tolist()


@torch.inference_mode()
def full_pass(model: Transformer, tokens: list[int]) -> tuple[Tensor, KVArena, Any]:
    """Logits [T, V] of one sequence in one pass, and the arena and the extent with its cache."""
    arena = KVArena(model.config, len(tokens) + 64, torch.float32, "cpu")
    extent = arena.allocate(len(tokens))
    assert extent is not None
    hidden = model.forward(RaggedBatch.build([(tokens, 0, extent)], "cpu"), arena)
    return model.logits(hidden), arena, extent


class _Outputs:
    """What every attention layer adds in a pass, and the cosines that it turns by."""

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []
        self.cosines: list[Tensor] = []

    def see(self, layer: int, x: Tensor, added: Tensor) -> None:
        """Keep both, in fp64."""
        x, added = x.double(), added.double()
        self.outputs.append(added)
        self.cosines.append(torch.nn.functional.cosine_similarity(x, x + added, dim=-1))


def outputs_and_cosines(model: Transformer, tokens: list[int]) -> tuple[Tensor, Tensor]:
    """Attention outputs [L, T, D] and similarities [L, T], fp64, of one sequence in one pass."""
    arena = KVArena(model.config, len(tokens) + 64, torch.float32, "cpu")
    extent = arena.allocate(len(tokens))
    assert extent is not None
    seen = _Outputs()
    model.forward(RaggedBatch.build([(tokens, 0, extent)], "cpu"), arena, observers=[seen])
    return torch.stack(seen.outputs), torch.stack(seen.cosines)


def score_gap(model: Transformer, request: Request, agreed: list[int], a: int, b: int) -> float:
    """How far apart two tokens are after a common prefix: by logits, sampled by log p + noise."""
    prefix = [*request.prompt_token_ids, *agreed]
    logits = full_pass(model, prefix)[0][-1:]
    base = stream(request.sampling.seed, request.key)
    row = LawRow(request.sampling, base, len(agreed), seen=lambda: prefix)
    if request.sampling.greedy:
        scores = logits[0].double()
    else:
        law = Sampler(model.config.vocab_size).laws(logits, [row])[0].double()
        keys = torch.tensor([position_key(base, len(agreed))])
        noise = exponential(keys, token_hash(torch.arange(model.config.vocab_size)))[0]
        scores = law.log() - noise.log()
    return abs(scores[a] - scores[b]).item()


def assert_identical(
    model: Transformer,
    requests: Sequence[Request],
    ours: Sequence[list[int]],
    theirs: Sequence[list[int]],
    *,
    tie: float = 1e-4,
) -> int:
    """Token ids of every sequence are equal, but for a first difference at a logged near-tie.

    Two fp32 computations of one logit differ by about 1e-5, so a pair of tokens closer than `tie`
    may change places; such sequences are counted, and the count returned. More than one in 20 of
    them is no coincidence.
    """
    ties = 0
    for request, our, their in zip(requests, ours, theirs, strict=True):
        if our == their:
            continue
        at = next((i for i, (a, b) in enumerate(zip(our, their, strict=False)) if a != b), None)
        assert at is not None, f"{request.key}: lengths {len(our)} and {len(their)}"
        gap = score_gap(model, request, their[:at], our[at], their[at])
        logger.warning("sequence %s, token %d: near-tie of %.2g", request.key, at, gap)
        assert gap < tie, f"{request.key}: token {at} is {our[at]}, not {their[at]}; gap {gap}"
        ties += 1
    assert ties <= len(requests) / 20, f"{ties} near-ties among {len(requests)} sequences"
    return ties


def budget_for(model: Transformer, slots: int) -> int:
    """The KV budget in bytes of that many slots in fp32."""
    return slots * bytes_per_slot(model.config, torch.float32)
