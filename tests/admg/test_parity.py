"""Logits of our forward against transformers': fp32, within 1e-4, the same weights on both sides.

transformers gives the oracle in one full pass over each sequence alone. Ours come out of a ragged
batch: prompts in one pass or in chunks, the rest of the text token by token on the cached keys and
values, so that positions, extents, masks and every family switch must be right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from admg.batch import RaggedBatch
from admg.checkpoint import load_weights
from admg.families import read_model_config
from admg.kv_arena import SLOT_GRAIN, KVArena
from admg.model import Transformer

TOLERANCE = 1e-4
NUM_STEPS = 6


def load_oracle(path: Path) -> transformers.PreTrainedModel:
    """transformers' model in fp32, with its plain attention."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@torch.inference_mode()
def oracle_logits(oracle: transformers.PreTrainedModel, sequence: list[int]) -> Tensor:
    """Logits [T, V] of one sequence alone, in the oracle's dtype."""
    return oracle(torch.tensor([sequence])).logits[0]


def our_logits(
    model: Transformer, sequences: Sequence[list[int]], prompt_lengths: Sequence[int], chunk: int
) -> list[Tensor]:
    """Logits [T, V] of each sequence: prompts in chunks of `chunk`, then one token a pass."""
    slots = sum(len(sequence) + SLOT_GRAIN for sequence in sequences)
    arena = KVArena(model.config, slots, torch.float32, "cpu")
    extents = [arena.allocate(len(sequence)) for sequence in sequences]
    assert None not in extents
    rows: list[list[Tensor]] = [[] for _ in sequences]
    done = [0] * len(sequences)
    while True:
        parts, owners = [], []
        for i, sequence in enumerate(sequences):
            size = chunk if done[i] < prompt_lengths[i] else 1
            end = min(done[i] + size, max(prompt_lengths[i], done[i] + 1), len(sequence))
            if end > done[i]:
                parts.append((sequence[done[i] : end], done[i], extents[i]))
                owners.append(i)
                done[i] = end
        if not parts:
            return [torch.cat(own) for own in rows]
        logits = model.logits(model.forward(RaggedBatch.build(parts, "cpu"), arena))
        lengths = [len(tokens) for tokens, _, _ in parts]
        for i, part in zip(owners, logits.split(lengths), strict=True):
            rows[i].append(part)


def assert_parity(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    """Every logit of every position within the tolerance."""
    for i, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        assert our.shape == their.shape
        difference = (our - their).abs().max().item()
        assert difference < TOLERANCE, f"sequence {i} differs by {difference}"


def random_sequences(vocab_size: int, lengths: Sequence[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(vocab_size, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize("chunk", [1000, 40, 7], ids=["one-pass", "long-chunks", "short-chunks"])
def test_ragged_batch_agrees_with_transformers(tiny_checkpoint: Path, chunk: int) -> None:
    model = Transformer.load(tiny_checkpoint, dtype=torch.float32, device="cpu")
    prompt_lengths = [1, 40, 13, 97, 2]
    lengths = [length + NUM_STEPS for length in prompt_lengths]
    sequences = random_sequences(model.config.vocab_size, lengths)
    oracle = load_oracle(tiny_checkpoint)
    theirs = [oracle_logits(oracle, sequence) for sequence in sequences]
    assert_parity(our_logits(model, sequences, prompt_lengths, chunk), theirs)


def test_tiny_models_can_tell_right_from_wrong(tiny_checkpoint: Path) -> None:
    """The parity above means little unless these models depend on what it checks.

    Order of the tokens, far tokens and every layer must move the logits by far more than the
    tolerance, and the most likely token must stand out.
    """
    oracle = load_oracle(tiny_checkpoint)
    sequence = random_sequences(oracle.config.vocab_size, [60])[0]
    logits = oracle_logits(oracle, sequence)
    top = logits.topk(2).values
    assert (top[:, 0] - top[:, 1]).median() > 0.1
    swapped = [sequence[1], sequence[0], *sequence[2:]]
    assert (oracle_logits(oracle, swapped)[-1] - logits[-1]).abs().max() > 100 * TOLERANCE
    for layer in oracle.model.layers:
        weight = layer.self_attn.o_proj.weight
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.zero_()
        assert (oracle_logits(oracle, sequence)[-1] - logits[-1]).abs().max() > 1000 * TOLERANCE
        with torch.no_grad():
            weight.copy_(kept)


def test_untied_copy_of_a_tied_head_agrees(
    checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    """Tied and untied are one computation: the head is the only thing that moves."""
    config = read_model_config(checkpoints("qwen3"))
    weights = load_weights(checkpoints("qwen3"), config, torch.float32, "cpu")
    assert weights.head is weights.embed
    model = Transformer(config, weights)
    oracle = load_oracle(checkpoints("qwen3"))
    head = torch.nn.Parameter(oracle.lm_head.weight.detach() * -1.5)
    oracle.config.tie_word_embeddings = False
    oracle.lm_head.weight = head
    oracle.save_pretrained(tmp_path)
    untied = Transformer.load(tmp_path, dtype=torch.float32, device="cpu")
    sequences = random_sequences(model.config.vocab_size, [20, 5])
    tied_logits = our_logits(model, sequences, [20, 5], 1000)
    untied_logits = our_logits(untied, sequences, [20, 5], 1000)
    for tied, other in zip(tied_logits, untied_logits, strict=True):
        torch.testing.assert_close(other, -1.5 * tied, atol=TOLERANCE, rtol=1e-5)


@pytest.mark.timeout(300)
def test_demo_model_agrees_on_real_prompts(
    demo_model_path: Path, spec_bench_prompts: list[str]
) -> None:
    """A real model, whose logits reach 40: there transformers' own fp32 strays by up to 2e-4.

    So the bound at each position is 1e-4 beyond what separates transformers in fp32 from
    transformers in fp64 there, and on the whole our fp32 must be as near to fp64 as theirs.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo_model_path)
    chosen = [spec_bench_prompts[i] for i in (0, 100, 170, 250, 330)]
    sequences = [tokenizer(text)["input_ids"][:120] for text in chosen]
    prompt_lengths = [max(len(sequence) - NUM_STEPS, 1) for sequence in sequences]
    oracle = load_oracle(demo_model_path)
    theirs = [oracle_logits(oracle, sequence) for sequence in sequences]
    oracle.double()
    exact = torch.cat([oracle_logits(oracle, sequence) for sequence in sequences])
    del oracle
    their_error = (torch.cat(theirs) - exact).abs()

    model = Transformer.load(demo_model_path, dtype=torch.float32, device="cpu")
    for chunk in (1000, 64):
        ours = torch.cat(our_logits(model, sequences, prompt_lengths, chunk))
        difference = (ours - torch.cat(theirs)).abs().amax(-1)  # [T]
        bound = TOLERANCE + their_error.amax(-1)
        assert (difference < bound).all(), f"{(difference - bound).max()} beyond the bound"
        assert difference.median() < TOLERANCE / 2
        assert (ours - exact).abs().mean() < 1.25 * their_error.mean()
