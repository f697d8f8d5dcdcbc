"""The forward pass of the Llama family over a ragged batch.

Shapes: T tokens of the pass, D hidden size, H query heads, K KV heads, d head size, F feed-forward
size, V vocabulary, N rows whose logits are wanted.

One forward serves prefill, verification and drafting. What a draft leaves out, and what it adds
instead, come in as values (`Members`, `fill`), never as flags of the model; without them it is
the full model. This file knows nothing about rounds, sampling or text.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from admg.attention import attend
from admg.batch import Masked, RaggedBatch, SubBatch
from admg.checkpoint import LayerWeights, OnLoad, Weights, load_weights
from admg.config import LowBit
from admg.families import ModelConfig, read_model_config
from admg.kv_arena import KVArena
from admg.linear import Linear
from admg.low_bit import Product, check_low_bit, low_bit_linear
from admg.low_bit_cuda import SmallProduct, Tried
from admg.rope import apply_rope, rope_tables
from admg.windows import HeadsObserver

# Which sequences of the pass take part in each layer's sub-layer: None all of them, an empty
# SubBatch (no segments) none of them; Masked computes all and keeps what is to be kept.
LayerMembers = Sequence[SubBatch | Masked | None]


@dataclass(frozen=True, slots=True)
class Members:
    """Who takes part in each layer's attention, and who in its MLP."""

    attention: LayerMembers
    mlp: LayerMembers


class AttentionObserver(Protocol):
    """Sees each attention sub-layer's input and output, in the residual stream."""

    def see(self, layer: int, x: Tensor, added: Tensor) -> None:
        """Take note of input `x` [T, D] and what the sub-layer adds to it, `added` [T, D]."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's weights in the form that the forward uses."""

    input_norm: Tensor  # [D]
    qkv: Product
    q_norm: Tensor | None  # [d]
    k_norm: Tensor | None  # [d]
    o: Product
    post_norm: Tensor  # [D]
    gate_up: Product
    down: Product

    @classmethod
    def of(cls, w: LayerWeights, product: Callable[[Tensor, Tensor | None], Product]) -> Layer:
        """A layer whose products are made from its weights and biases."""
        return cls(
            w.input_norm,
            product(w.qkv, w.qkv_bias),
            w.q_norm,
            w.k_norm,
            product(w.o, w.o_bias),
            w.post_norm,
            product(w.gate_up, w.gate_up_bias),
            product(w.down, w.down_bias),
        )


class Transformer:
    """Weights, rotary tables and the forward pass. Stateless: keys and values lie in the arena.

    Takes the weights over: `weights.layers` is empty afterwards, so that what is packed for the
    CPU is not there twice.

    `low_bit` names the weights of a second, smaller form of the model, for drafts: the attribute
    `low_bit`, which shares all but the matrices and takes `low_bit_bytes` more. An engine that
    finds no use for it releases it.
    """

    def __init__(
        self, config: ModelConfig, weights: Weights, low_bit: LowBit | None = None
    ) -> None:
        self.config = config
        self.dtype = weights.embed.dtype
        self.device = weights.embed.device
        self._embed = weights.embed  # [V, D]
        self._final_norm = weights.norm
        self.low_bit: Transformer | None = None
        self.low_bit_bytes = 0
        small: list[Layer] = []
        products: list[SmallProduct] = []
        tried = Tried()

        def smaller(weight: Tensor, bias: Tensor | None) -> Product:
            assert low_bit is not None
            products.append(low_bit_linear(low_bit, weight, bias, tried))
            return products[-1]

        self._layers: list[Layer] = []
        while weights.layers:
            layer = weights.layers.pop(0)
            if low_bit is not None:
                small.append(Layer.of(layer, smaller))
            self._layers.append(Layer.of(layer, Linear))
        self._head: Product = Linear(weights.head)
        length = config.max_position_embeddings
        self._cos, self._sin = rope_tables(config.rope, length, self.device)  # [P, d] fp32
        if low_bit is not None:
            self.low_bit = copy.copy(self)
            self.low_bit._layers, self.low_bit._head = small, smaller(weights.head, None)
            self.low_bit_bytes = sum(p.nbytes for p in products)

    def release_low_bit(self) -> int:
        """Let the smaller form go, for good; the bytes that it took."""
        released, self.low_bit_bytes = self.low_bit_bytes, 0
        self.low_bit = None
        return released

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        low_bit: LowBit | None = None,
        on_load: OnLoad | None = None,
    ) -> Transformer:
        """From a Hugging Face folder with safetensors; `on_load` as `load_weights` has it.

        Raises:
            ValueError: an architecture, a field or a tensor that is not understood, or weights
                that no kernel here can multiply, by name.
        """
        config = read_model_config(path)
        if low_bit is not None:
            check_low_bit(low_bit, device, dtype)
        return cls(config, load_weights(path, config, dtype, device, on_load), low_bit)

    @torch.inference_mode()
    def forward(
        self,
        batch: RaggedBatch,
        arena: KVArena,
        *,
        members: Members | None = None,
        fill: Tensor | None = None,
        observers: Sequence[AttentionObserver] = (),
        heads: HeadsObserver | None = None,
    ) -> Tensor:
        """Hidden states [T, D] before the final norm; writes keys and values of the layers run.

        A sequence that is not a member of a layer's attention skips it: it neither reads nor
        writes keys and values there, and `fill` [L, T, D] is added to its residual stream in the
        layer's place (nothing without it). Who skips an MLP gets nothing in its place. Observers
        see the layers that all sequences run, and so does `heads`, from the inside.
        """
        x = F.embedding(batch.token_ids, self._embed)
        cos, sin = self._cos[batch.positions], self._sin[batch.positions]
        for layer, weights in enumerate(self._layers):
            part = members.attention[layer] if members is not None else None
            if part is None:
                added = self._attention(layer, weights, x, cos, sin, batch, arena, heads)
                for observer in observers:
                    observer.see(layer, x, added)
                x = x + added
            elif isinstance(part, Masked):
                own = self._attention(layer, weights, x, cos, sin, batch, arena)
                x = x + part.join(own, None if fill is None else fill[layer])
            else:
                added = torch.zeros_like(x) if fill is None else fill[layer]
                if part.batch.segments:
                    i = part.index
                    own = self._attention(layer, weights, x[i], cos[i], sin[i], part.batch, arena)
                    if part.limited is not None and fill is not None:
                        own.index_add_(0, part.limited, added[i[part.limited]])
                    added = added.index_copy(0, i, own)
                x = x + added
            part = members.mlp[layer] if members is not None else None
            if part is None:
                x = x + self._mlp(weights, x)
            elif isinstance(part, Masked):
                x = x + part.join(self._mlp(weights, x), None)
            elif part.batch.segments:
                x = x.index_add(0, part.index, self._mlp(weights, x[part.index]))
        return x

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] fp32 of hidden states [N, D]."""
        return self._head(self._norm(hidden, self._final_norm)).float()

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.config.rms_norm_eps)

    def _attention(
        self,
        layer: int,
        w: Layer,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        batch: RaggedBatch,
        arena: KVArena,
        heads: HeadsObserver | None = None,
    ) -> Tensor:
        c = self.config
        h, k, d = c.num_heads, c.num_kv_heads, c.head_dim
        qkv = w.qkv(self._norm(x, w.input_norm)).view(-1, h + 2 * k, d)
        queries, keys, values = torch.split(qkv, [h, k, k], dim=1)
        if w.q_norm is not None and w.k_norm is not None:
            queries, keys = self._norm(queries, w.q_norm), self._norm(keys, w.k_norm)
            queries, keys = apply_rope(queries, cos, sin), apply_rope(keys, cos, sin)
        else:
            rotated = apply_rope(qkv[:, : h + k], cos, sin)
            queries, keys = torch.split(rotated, [h, k], dim=1)
        arena.write(layer, batch.arena_rows(k), keys, values)
        out = attend(queries, layer, batch, arena)
        added = w.o(out.reshape(-1, h * d))
        if heads is not None:
            heads.see_heads(layer, x, added, queries, out.view(-1, h, d), w.o)
        return added

    def _mlp(self, w: Layer, x: Tensor) -> Tensor:
        gate, up = w.gate_up(self._norm(x, w.post_norm)).chunk(2, dim=-1)
        return w.down(F.silu(gate) * up)
