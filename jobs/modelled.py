"""What rounds of drafting should cost and gain on a device: a roofline, nothing here is measured.

Symbols: L layers, D hidden size, H query heads, K KV heads, d head size, F feed-forward size,
V vocabulary; B sequences, n tokens of context, t tokens of a pass per sequence, g draft tokens
of a round, w bytes of a weight and of a cached number, G bytes per second, C operations per second.

A pass is matrix products and attention, one after the other, each as long as its bytes take or its
operations, whichever is more:

    seconds = max(weight bytes / G, product operations / C) + max(KV bytes / G, attention ops / C)
    weight bytes        w (L A + L M + V D)     A = D (H + 2K) d + H d D,  M = 3 D F
    product operations  2 B t (L A + L M + V D)
    KV bytes            w B 2 L K d (n + t)     n tokens are read, t are written
    attention ops       4 B t L H d (n + (t + 1) / 2)

A round is g draft passes over one token and one pass of the target over g + 1; plain decoding is
a pass over one token for each token:

    speedup = tokens per target pass * plain seconds / (g * draft seconds + verification seconds)

Left out: norms, biases, activations, rows of the embedding, sampling, prefill, and everything that
keeps an engine from reaching the roofline. A small model on a fast device is bound by launches
instead, so what is computed here for it says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from jobs.devices import Device

if TYPE_CHECKING:
    from admg.families import ModelConfig
    from admg.plan import DraftPlan

# Of int4 weights: inputs that share a scale and a zero.
_GROUP = 32
# Keys that a limited unit reads where nothing else is said: the first 4 and the last 64.
WINDOW = 68


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a model that its passes cost by."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    wide: int
    vocab: int

    @classmethod
    def of(cls, config: ModelConfig) -> Shape:
        """The sizes of a checkpoint's configuration."""
        return cls(
            config.num_layers,
            config.hidden_size,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            config.intermediate_size,
            config.vocab_size,
        )

    @property
    def attention(self) -> int:
        """Weights of one layer's attention."""
        qkv = self.hidden * (self.heads + 2 * self.kv_heads) * self.head_dim
        return qkv + self.heads * self.head_dim * self.hidden

    @property
    def mlp(self) -> int:
        """Weights of one layer's MLP."""
        return 3 * self.hidden * self.wide

    @property
    def head(self) -> int:
        """Weights of the output head."""
        return self.vocab * self.hidden


@dataclass(frozen=True, slots=True)
class Saving:
    """What the draft passes of a batch leave out.

    `dropped_attention` and `windowed`, (layer, KV head) units that read `window` keys at most, are
    means over the sequences and save KV traffic. A layer's weights are saved only where every
    sequence of the batch drops it: `shared_attention` of them (None: all that are dropped).
    `dropped_mlps` are the same for all sequences. `weights` is the precision of the draft's.
    """

    dropped_attention: float = 0.0
    dropped_mlps: float = 0.0
    windowed: float = 0.0
    window: int = WINDOW
    weights: str = "full"
    shared_attention: float | None = None

    @classmethod
    def of(cls, plans: Sequence[DraftPlan], window: int = WINDOW, weights: str = "full") -> Saving:
        """What the plans of the sequences of one batch leave out together."""
        count = len(plans)
        shared = set(plans[0].dropped).intersection(*(p.dropped for p in plans))
        mlps = set(plans[0].dropped_mlps).intersection(*(p.dropped_mlps for p in plans))
        return cls(
            dropped_attention=sum(len(p.dropped) for p in plans) / count,
            dropped_mlps=len(mlps),
            windowed=sum(len(heads) for p in plans for heads in p.windowed) / count,
            window=window,
            weights=weights,
            shared_attention=len(shared),
        )


NOTHING = Saving()


@dataclass(frozen=True, slots=True)
class ModelledPass:
    """One pass over a batch: the bytes that it moves, its operations and its least time."""

    weight_bytes: float
    kv_bytes: float
    operations: float
    seconds: float


@dataclass(frozen=True, slots=True)
class ModelledRound:
    """Seconds of the passes of a round, and what drafting in such rounds gains.

    `saved_weight_bytes` and `saved_kv_bytes` are of one draft pass over the batch, against a plain
    pass; `cost_ratio` is a draft pass's time over a plain pass's.
    """

    plain_seconds: float
    draft_seconds: float
    verification_seconds: float
    saved_weight_bytes: float
    saved_kv_bytes: float
    cost_ratio: float
    speedup: float

    def to_dict(self) -> dict[str, Any]:
        """The values by name, and that they are computed."""
        return asdict(self) | {"computed": True}


def weight_bytes(kind: str, number: int = 2) -> float:
    """Bytes of a weight of the draft: full, int8, fp8, or int4 with its group's scale and zero.

    Raises:
        ValueError: another kind.
    """
    kinds = {"full": float(number), "int8": 1.0, "fp8": 1.0, "int4": 0.5 + 2 * number / _GROUP}
    if kind not in kinds:
        raise ValueError(f"draft_weights is {kind!r}: it must be one of {', '.join(kinds)}")
    return kinds[kind]


def model_pass(
    shape: Shape,
    device: Device,
    *,
    batch: int,
    context: float,
    tokens: float = 1,
    saving: Saving = NOTHING,
    number: int = 2,
) -> ModelledPass:
    """A pass over `tokens` tokens of each of `batch` sequences of `context` tokens.

    Args:
        number: bytes of a weight and of a cached number: 2 for bf16, 4 for fp32.

    Raises:
        ValueError: more left out than the model has.
    """
    s = shape
    dropped = saving.dropped_attention
    shared = dropped if saving.shared_attention is None else saving.shared_attention
    rest = (s.layers - saving.dropped_mlps) * s.mlp + s.head
    read = (s.layers - shared) * s.attention + rest
    used = (s.layers - dropped) * s.attention + rest
    # Keys read by each query, summed over (layer, KV head) units.
    whole = (s.layers - dropped) * s.kv_heads - saving.windowed
    if dropped > s.layers or saving.dropped_mlps > s.layers or whole < 0:
        raise ValueError(
            f"saving is {saving}: it must leave out at most {s.layers} layers with {s.kv_heads} "
            "KV heads each"
        )
    keys = whole * context + saving.windowed * min(context, saving.window)
    own = (s.layers - dropped) * s.kv_heads
    moved = 2 * s.head_dim * number * batch * (keys + own * tokens)
    products = 2 * batch * tokens * used
    group = s.heads / s.kv_heads
    attended = 4 * s.head_dim * group * batch * tokens * (keys + own * (tokens + 1) / 2)
    weights = weight_bytes(saving.weights, number) * read
    seconds = max(weights / device.bandwidth, products / device.flops)
    seconds += max(moved / device.bandwidth, attended / device.flops)
    return ModelledPass(weights, moved, products + attended, seconds)


def model_round(
    shape: Shape,
    device: Device,
    *,
    batch: int,
    context: float,
    saving: Saving,
    draft_tokens: float,
    tokens_per_pass: float,
    draft_passes: float | None = None,
    number: int = 2,
) -> ModelledRound:
    """Rounds that draft `draft_tokens` on average and commit `tokens_per_pass`.

    Args:
        tokens_per_pass: mean acceptance length: committed tokens per pass of the target, recovered
            and bonus tokens included.
        draft_passes: of the model per round; fewer than the tokens where lookup drafts as well.

    Raises:
        ValueError: fewer than 0 draft tokens, or tokens per pass outside 1 to draft tokens + 1.
    """
    if draft_tokens < 0:
        raise ValueError(f"draft_tokens is {draft_tokens}: it must be 0 or more")
    if not 1 <= tokens_per_pass <= draft_tokens + 1 + 1e-9:
        raise ValueError(
            f"tokens_per_pass is {tokens_per_pass}: it must be between 1 and draft_tokens + 1, "
            f"{draft_tokens + 1}"
        )
    over = partial(model_pass, shape, device, batch=batch, context=context, number=number)
    plain, draft = over(), over(saving=saving)
    verified = over(tokens=draft_tokens + 1)
    passes = draft_tokens if draft_passes is None else draft_passes
    taken = passes * draft.seconds + verified.seconds
    return ModelledRound(
        plain.seconds,
        draft.seconds,
        verified.seconds,
        plain.weight_bytes - draft.weight_bytes,
        plain.kv_bytes - draft.kv_bytes,
        draft.seconds / plain.seconds,
        tokens_per_pass * plain.seconds / taken,
    )
