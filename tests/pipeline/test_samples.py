"""What a model is known by: a change of any tensor is seen, and little is read for it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import save

from pipeline.fingerprint import identity_of
from pipeline.samples import spans_of

LAYERS, WIDE = 60, 160


def tensors() -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (1000, WIDE)}
    for i in range(LAYERS):
        shapes[f"model.layers.{i}.input_layernorm.weight"] = (WIDE,)
        shapes[f"model.layers.{i}.mlp.down_proj.weight"] = (WIDE, 128)
        shapes[f"model.layers.{i}.self_attn.q_proj.bias"] = (WIDE,)
    return {name: torch.randn(shape, generator=made) for name, shape in shapes.items()}


def weights_of(content: bytes, name: str = "model.safetensors") -> str:
    return identity_of({name: lambda: io.BytesIO(content)})["weights"]


def test_another_content_of_any_one_tensor_is_another_model() -> None:
    model = tensors()
    known = {weights_of(save(model))}
    assert known == {weights_of(save(model))}
    for name, tensor in model.items():
        known.add(weights_of(save(model | {name: tensor + 0.001})))
    assert len(known) == 1 + len(model)


@pytest.mark.parametrize("row", [0, 500, 999])
def test_rows_at_the_ends_and_the_middle_of_an_embedding_count(row: int) -> None:
    model = tensors()
    before = weights_of(save(model))
    model["model.embed_tokens.weight"][row] += 1
    assert weights_of(save(model)) != before


def test_little_is_read_of_large_files_in_few_requests() -> None:
    """The layers of a 13B model and its header; the file's bytes themselves are not needed."""
    sizes = {"model.embed_tokens.weight": 2**25}
    for i in range(40):
        sizes[f"model.layers.{i}.input_layernorm.weight"] = 10240
        sizes |= {f"model.layers.{i}.{n}.weight": 2**24 for n in "abcdefg"}
    places, end = {}, 0
    for name, size in sizes.items():
        places[name] = {"dtype": "BF16", "shape": [size // 2], "data_offsets": [end, end + size]}
        end += size
    header = json.dumps({"__metadata__": {"format": "pt"}, **places}).encode()

    class Sparse(io.BytesIO):
        def seek(self, offset: int, whence: int = 0, /) -> int:
            return 8 + len(header) + end if whence == 2 else super().seek(offset, whence)

    size, spans = spans_of(lambda: Sparse(len(header).to_bytes(8, "little") + header))
    assert size == 8 + len(header) + end
    assert sum(stop - start for start, stop in spans) < 4 * 2**20
    assert len(spans) < 2 * len(sizes)
    assert spans == sorted(spans) and spans[0][0] == 0 and spans[-1][1] == size


def no_header(content: bytes) -> bytes:
    return b"\xff" * 8 + content[8:]


def with_header(header: Any) -> Callable[[bytes], bytes]:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return lambda content: len(text).to_bytes(8, "little") + text + content


@pytest.mark.parametrize(
    "damage",
    [
        no_header,
        with_header([1]),
        with_header(b"[" * 100_000),
        with_header({"a": {"data_offsets": [0, 10**9]}}),
        with_header({"a": {"data_offsets": [-1, 4]}}),
        with_header({"a": {"data_offsets": 5}}),
        with_header({"a": {}}),
        with_header({}),
        lambda _: b"",
        lambda _: b"123",
    ],
)
def test_files_of_any_content_are_known_by_places_of_their_size(
    damage: Callable[[bytes], bytes],
) -> None:
    content = damage(bytes(10**6))
    assert weights_of(content) == weights_of(content)
    assert weights_of(content) != weights_of(content[:-1] + b"x")
    assert weights_of(content) != weights_of(content, "other.safetensors")


def test_other_formats_are_sampled_as_before() -> None:
    size, spans = spans_of(lambda: io.BytesIO(b"GGUF" + bytes(10**6)))
    last = size - 4096
    assert spans == [(last * i // 31, last * i // 31 + 4096) for i in range(32)]
