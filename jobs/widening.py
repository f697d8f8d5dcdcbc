"""The same function in a wider model: what becomes of each of a checkpoint's tensors.

Shapes: D hidden size, H query heads, K KV heads, G = H/K query heads of one KV head, d head size,
F feed-forward size; primed (D', ...) in the wide model. E is [D', D] with orthonormal columns.

The residual stream x becomes E x: zero-padded, then rotated by a random orthogonal matrix, of which
only these D columns matter, so nothing in the wide matrices is zero for that reason. An RMSNorm
commutes with rotations where its weights are 1, so they are folded into the matrices behind it; the
mean over D' dimensions is D/D' of the mean over D, so its epsilon becomes D/D' of what it was, and
the matrices behind it are divided by sqrt(D'/D).

Heads. Every wide KV head is a copy of a narrow one and its query heads are copies of those that
read it; an output is the weighted sum of its copies, with random weights that sum to 1. Values are
embedded into d' dimensions by a random orthonormal matrix that the output projection undoes. Pairs
of the rotary embedding turn at theta^(-2i/d); pair i of a narrow head is put at pair i d'/d of the
wide one, which turns at the same speed, and the pairs between are zero in queries and keys (nothing
else is exact: they turn at speeds that the narrow model has not). Queries take the factor
sqrt(d'/d) that attention divides by.

MLP. SiLU admits no rotation of its units, so every wide unit is a copy of a narrow one, `up` with a
random sign and `down` with a random share of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from admg.families import ModelConfig

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class WideShape:
    """The sizes that are widened; layers and vocabulary stay what they are."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int

    def check(self, narrow: ModelConfig) -> None:
        """Refuse what the construction cannot do.

        Raises:
            ValueError: a size that is smaller than the model's own, or does not go with it.
        """
        _refuse(narrow.qk_norm, "model", narrow.family, "one that does not normalise its heads")
        for name in ("hidden_size", "intermediate_size", "num_kv_heads"):
            own, wide = getattr(narrow, name), getattr(self, name)
            _refuse(wide < own, name, wide, f"at least the model's own, {own}")
        multiple = f"a multiple of the model's own, {narrow.head_dim}"
        _refuse(self.head_dim % narrow.head_dim != 0, "head_dim", self.head_dim, multiple)
        divisor = f"a divisor of num_heads ({self.num_heads})"
        _refuse(self.num_heads % self.num_kv_heads != 0, "num_kv_heads", self.num_kv_heads, divisor)
        group = narrow.num_heads // narrow.num_kv_heads
        least = (self.num_kv_heads // narrow.num_kv_heads) * (self.num_heads // self.num_kv_heads)
        right = f"more: each of the model's KV heads has {group} query heads, and room for {least}"
        _refuse(least < group, "num_heads", self.num_heads, right)

    def over(self, narrow: ModelConfig) -> ModelConfig:
        """The wide model's configuration, but for its rotary embedding's speeds."""
        return replace(
            narrow,
            hidden_size=self.hidden_size,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            intermediate_size=self.intermediate_size,
            rms_norm_eps=narrow.rms_norm_eps * narrow.hidden_size / self.hidden_size,
            tied=False,
        )


def _refuse(wrong: bool, name: str, value: object, right: str) -> None:
    if wrong:
        raise ValueError(f"{name} of the wide shape is {value!r}: it must be {right}")


class Widening:
    """One way to widen a model: the random choices are those of `seed`.

    Raises:
        ValueError: a shape that this model cannot be widened to.
    """

    def __init__(
        self,
        narrow: ModelConfig,
        shape: WideShape,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        shape.check(narrow)
        self.narrow, self.wide = narrow, shape.over(narrow)
        self._seed, self._device = seed, device
        self._residual = self._orthonormal(self._random(-1), shape.hidden_size, narrow.hidden_size)
        self._gain = math.sqrt(shape.hidden_size / narrow.hidden_size)
        self._queries, self._keys = _head_copies(narrow, self.wide)
        half, times = narrow.head_dim // 2, shape.head_dim // narrow.head_dim
        first = torch.arange(half) * times
        self._places = torch.cat([first, first + shape.head_dim // 2]).to(device)  # [d]

    def embedding(self, rows: Tensor) -> Tensor:
        """Rows [n, D'] of the embedding, for rows [n, D]."""
        return self._own(rows) @ self._residual.T

    def head(self, rows: Tensor, norm: Tensor) -> Tensor:
        """Rows [n, D'] of the head, for rows [n, D] and the final norm's weights [D]."""
        return self._inputs(self._own(rows), norm)

    def layer(self, number: int, narrow: Tensors) -> dict[str, Tensor]:
        """The wide tensors of a layer by their names inside it, fp32; `narrow` has the old ones."""
        random = self._random(number)
        given = {name: self._own(tensor) for name, tensor in narrow.items()}
        ones = torch.ones(self.wide.hidden_size, device=self._device)
        found = {"input_layernorm.weight": ones, "post_attention_layernorm.weight": ones.clone()}
        return found | self._attention(given, random) | self._mlp(given, random)

    def _attention(self, given: Tensors, random: torch.Generator) -> dict[str, Tensor]:
        w, n = self.wide, self.narrow
        norm = given["input_layernorm.weight"]
        values = [self._orthonormal(random, w.head_dim, n.head_dim) for _ in range(w.num_kv_heads)]
        shares = _shares(self._queries, n.num_heads, random).to(self._device)
        scale = math.sqrt(w.head_dim / n.head_dim)
        found: dict[str, Tensor] = {}
        for kind, heads, copies in (
            ("q", n.num_heads, self._queries),
            ("k", n.num_kv_heads, self._keys),
            ("v", n.num_kv_heads, self._keys),
        ):
            for part in ("weight", "bias"):
                name = f"self_attn.{kind}_proj.{part}"
                if name not in given:
                    continue
                rows = given[name]
                rows = self._inputs(rows, norm) if part == "weight" else rows[:, None]
                parts = rows.view(heads, n.head_dim, -1)[copies]  # [H' or K', d, D' or 1]
                if kind == "v":
                    wide = torch.stack([v @ own for v, own in zip(values, parts, strict=True)])
                else:
                    wide = parts.new_zeros(len(copies), w.head_dim, parts.shape[-1])
                    wide[:, self._places] = parts * (scale if kind == "q" else 1.0)
                wide = wide.flatten(0, 1)
                found[name] = wide if part == "weight" else wide[:, 0]
        columns = given["self_attn.o_proj.weight"].view(-1, n.num_heads, n.head_dim)
        group = w.num_heads // w.num_kv_heads
        mixed = [
            columns[:, own] @ (share * values[slot // group].T)
            for slot, (own, share) in enumerate(zip(self._queries, shares, strict=True))
        ]
        found["self_attn.o_proj.weight"] = self._residual @ torch.cat(mixed, dim=1)
        if "self_attn.o_proj.bias" in given:
            found["self_attn.o_proj.bias"] = self._residual @ given["self_attn.o_proj.bias"]
        return found

    def _mlp(self, given: Tensors, random: torch.Generator) -> dict[str, Tensor]:
        own, wide = self.narrow.intermediate_size, self.wide.intermediate_size
        copies = torch.arange(wide) % own
        signs = (torch.randint(0, 2, (wide,), generator=random) * 2 - 1).float()
        shares = _shares(copies.tolist(), own, random)
        copies, signs = copies.to(self._device), signs.to(self._device)
        norm = given["post_attention_layernorm.weight"]
        found: dict[str, Tensor] = {}
        for kind in ("gate", "up"):
            factor = signs if kind == "up" else torch.ones_like(signs)
            rows = self._inputs(given[f"mlp.{kind}_proj.weight"], norm)
            found[f"mlp.{kind}_proj.weight"] = rows[copies] * factor[:, None]
            if (bias := given.get(f"mlp.{kind}_proj.bias")) is not None:
                found[f"mlp.{kind}_proj.bias"] = bias[copies] * factor
        columns = self._residual @ given["mlp.down_proj.weight"]
        found["mlp.down_proj.weight"] = columns[:, copies] * (signs * shares.to(self._device))
        if (bias := given.get("mlp.down_proj.bias")) is not None:
            found["mlp.down_proj.bias"] = self._residual @ bias
        return found

    def _inputs(self, rows: Tensor, norm: Tensor) -> Tensor:
        """Rows [n, D] that read a normalised residual stream, as rows [n, D'] that read the new."""
        return (rows * (self._own(norm) / self._gain)) @ self._residual.T

    def _own(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, torch.float32)

    def _random(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(1_000_003 * (self._seed + 1) + number)

    def _orthonormal(self, random: torch.Generator, rows: int, columns: int) -> Tensor:
        drawn = torch.randn(rows, columns, generator=random, dtype=torch.float64)
        return torch.linalg.qr(drawn.to(self._device))[0].float()


def _head_copies(narrow: ModelConfig, wide: ModelConfig) -> tuple[list[int], list[int]]:
    """The narrow head that each wide query head copies, and the one that each KV head does."""
    group = narrow.num_heads // narrow.num_kv_heads
    room = wide.num_heads // wide.num_kv_heads
    keys = [j * narrow.num_kv_heads // wide.num_kv_heads for j in range(wide.num_kv_heads)]
    queries: list[int] = []
    taken = [0] * narrow.num_kv_heads
    for own in keys:
        for _ in range(room):
            queries.append(own * group + taken[own] % group)
            taken[own] += 1
    return queries, keys


def _shares(copies: list[int], count: int, random: torch.Generator) -> Tensor:
    """For each copy its share of the original: random, and those of one original sum to 1."""
    drawn = 0.5 + torch.rand(len(copies), generator=random)
    index = torch.tensor(copies)
    return drawn / torch.zeros(count).index_add_(0, index, drawn)[index]
