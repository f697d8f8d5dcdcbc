"""Attention over units whose ranges are data, by both kernels, against a dense computation in fp64.

The plain kernel runs here on the CPU. `make test-gpu` adds both kernels on the GPU:
`python -m pytest -m gpu tests/admg/test_attention_varlen.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from admg.attention_varlen import (
    BLOCK,
    Kernel,
    Units,
    kernel_for,
    merge,
    plain_kernel,
    plain_longest,
    varlen_kernel,
)

ROWS, SIZE = 900, 32


@dataclass(frozen=True)
class Backend:
    """A kernel, where it runs, in which dtype, and how close it comes."""

    kernel: Kernel
    device: str
    dtype: torch.dtype
    tolerance: float


BACKENDS = [
    pytest.param(Backend(plain_kernel, "cpu", torch.float32, 1e-5), id="plain-cpu"),
    pytest.param(Backend(plain_kernel, "cpu", torch.bfloat16, 3e-2), id="plain-cpu-bf16"),
    *(
        pytest.param(Backend(kernel, "cuda", dtype, tolerance), id=name, marks=pytest.mark.gpu)
        for name, kernel, dtype, tolerance in (
            ("plain-cuda", plain_kernel, torch.float32, 1e-5),
            ("varlen-fp16", varlen_kernel, torch.float16, 4e-3),
            ("varlen-bf16", varlen_kernel, torch.bfloat16, 3e-2),
        )
    ),
]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every kernel on every device of this run."""
    return request.param


@pytest.fixture(params=[1, 3], ids=["one-head", "three-heads"])
def heads(request: pytest.FixtureRequest) -> int:
    """Query heads in a row."""
    return request.param


def memory(backend: Backend, fill: float = 50.0) -> tuple[Tensor, Tensor]:
    """Keys and values whose rows are all stale until a unit's own are written."""
    stale = torch.full((ROWS, SIZE), fill, dtype=backend.dtype, device=backend.device)
    return stale, stale.clone()


def units_of(
    backend: Backend, ranges: list[tuple[int, int, int]], *, causal: bool, window: int | None = None
) -> Units:
    """Of (first row, rows read, queries) each."""
    starts, lengths, counts = (
        torch.tensor(x, dtype=torch.int32) for x in zip(*ranges, strict=True)
    )
    asks = torch.cat([torch.zeros(1, dtype=torch.int32), counts.cumsum(0).int()])
    put = (torch.cat([starts, starts[-1:]]), lengths, asks)
    sizes = (int(counts.max()), int(lengths.max()), causal, window)
    return Units(*(t.to(backend.device) for t in put), *sizes)


def dense(q: Tensor, k: Tensor, v: Tensor, units: Units) -> tuple[Tensor, Tensor]:
    """One unit: outputs [n, h, d] and lse [n, h] of queries [n, h, d], keys [N, d], in fp64."""
    q, k, v = q.double().cpu(), k.double().cpu(), v.double().cpu()
    scores = torch.einsum("nhd,kd->nhk", q, k) / SIZE**0.5
    last = torch.full((len(q),), len(k) - 1)
    if units.causal:
        last = torch.arange(len(k) - len(q), len(k))
    slots = torch.arange(len(k))
    hidden = slots > last[:, None]
    if units.window is not None:
        hidden |= slots <= last[:, None] - units.window
    scores.masked_fill_(hidden[:, None], -torch.inf)
    return scores.softmax(-1).nan_to_num() @ v, scores.logsumexp(-1)


def check(
    backend: Backend,
    heads: int,
    ranges: list[tuple[int, int, int]],
    *,
    causal: bool,
    window: int | None = None,
) -> None:
    """Units of (first row, rows read, queries): each reads its own rows and nothing else."""
    generator = torch.Generator().manual_seed(len(ranges))
    keys, values = memory(backend)
    for start, length, _ in ranges:
        for store in (keys, values):
            own = torch.randn(length, SIZE, generator=generator)
            store[start : start + length] = own.to(backend.dtype).to(backend.device)
    units = units_of(backend, ranges, causal=causal, window=window)
    total = sum(n for _, _, n in ranges)
    q = torch.randn(total, heads, SIZE, generator=generator).to(backend.dtype).to(backend.device)
    out, lse = backend.kernel(q, keys, values, units)
    assert out.shape == q.shape and out.dtype == q.dtype
    assert lse.shape == q.shape[:2] and lse.dtype == torch.float32
    for i, (start, length, count) in enumerate(ranges):
        rows = slice(int(units.asks[i]), int(units.asks[i]) + count)
        own = slice(start, start + length)
        expected, sums = dense(q[rows], keys[own], values[own], units)
        found, found_sums = out[rows].double().cpu(), lse[rows].double().cpu()
        if not length:
            assert (found == 0).all() and found_sums.isneginf().all()
            continue
        assert (found - expected).abs().max() < backend.tolerance, f"unit {i} of {ranges}"
        torch.testing.assert_close(found_sums, sums, atol=backend.tolerance, rtol=0)


def test_ragged_lengths_anywhere_in_memory(backend: Backend, heads: int) -> None:
    """Extents larger than lengths, in no order, with stale rows between them."""
    check(backend, heads, [(600, 7, 1), (0, 130, 1), (300, 1, 1), (840, 60, 1)], causal=False)


def test_units_of_length_zero_read_nothing(backend: Backend, heads: int) -> None:
    check(backend, heads, [(0, 0, 2), (64, 40, 2), (64, 0, 2), (899, 0, 2)], causal=False)
    check(backend, heads, [(0, 0, 3), (64, 40, 3), (200, 0, 3)], causal=True)
    check(backend, heads, [(10, 0, 1), (20, 0, 1)], causal=False)


def test_several_queries_see_up_to_their_own_place(backend: Backend, heads: int) -> None:
    check(backend, heads, [(0, 5, 5), (100, 64, 5), (500, 301, 5)], causal=True)


def test_prefill_chunks_and_single_tokens_in_one_call(backend: Backend, heads: int) -> None:
    ranges = [(0, 70, 70), (128, 90, 33), (256, 200, 1), (640, 9, 2), (700, 150, 40)]
    check(backend, heads, ranges, causal=True)


@pytest.mark.parametrize("window", [1, 7, 500])
def test_windows(backend: Backend, heads: int, window: int) -> None:
    check(backend, heads, [(0, 5, 4), (100, 64, 4), (500, 301, 4)], causal=True, window=window)


def test_longer_than_a_block_and_shorter_than_the_queries(backend: Backend) -> None:
    check(backend, 2, [(3, 880, 4), (0, 3, 4)], causal=True)


def test_merged_parts_are_one_attention(backend: Backend, heads: int) -> None:
    """The first 4 keys and the last 9, beside units that read all; one of them reads nothing."""
    ranges = [(50, 200), (300, 4), (400, 33), (600, 0)]
    limited = [True, True, False, False]
    generator = torch.Generator().manual_seed(1)
    keys, values = (
        torch.randn(ROWS, SIZE, generator=generator).to(backend.dtype).to(backend.device)
        for _ in "kv"
    )
    first = [(s, min(4, n) if near else n, 1) for (s, n), near in zip(ranges, limited, strict=True)]
    skipped = [max(4, n - 9) if near else n for (_, n), near in zip(ranges, limited, strict=True)]
    last = [(s + x, max(n - x, 0), 1) for (s, n), x in zip(ranges, skipped, strict=True)]
    units = units_of(backend, first + last, causal=False)
    q = torch.randn(4, heads, SIZE, generator=generator).to(backend.dtype).to(backend.device)
    outs, lse = backend.kernel(q.repeat(2, 1, 1), keys, values, units)
    merged = merge(outs.view(2, 4, heads, SIZE), lse.view(2, 4, heads)).double().cpu()
    whole = replace(units, window=None)
    for i, (start, length) in enumerate(ranges):
        seen = [j for j in range(length) if not limited[i] or j < 4 or j >= length - 9]
        rows = [start + j for j in seen]
        expected, _ = dense(q[i : i + 1], keys[rows], values[rows], whole)
        assert (merged[i] - expected[0]).abs().max() < backend.tolerance, f"unit {i}"
    assert (merged[3] == 0).all()


def test_what_stands_beside_a_unit_moves_no_bit(backend: Backend, heads: int) -> None:
    """So a row's own numbers do not hang on its batch; without splits this holds on the GPU too."""
    generator = torch.Generator().manual_seed(4)
    keys, values = (
        torch.randn(ROWS, SIZE, generator=generator).to(backend.dtype).to(backend.device)
        for _ in "kv"
    )
    q = torch.randn(4, heads, SIZE, generator=generator).to(backend.dtype).to(backend.device)
    alone, _ = backend.kernel(q, keys, values, units_of(backend, [(7, 300, 4)], causal=True))
    many = [(400, 490, 4), (7, 300, 4), (0, 5, 4)]
    beside, _ = backend.kernel(
        torch.cat([q + 1, q, q]), keys, values, units_of(backend, many, causal=True)
    )
    if backend.kernel is varlen_kernel:
        assert torch.equal(beside[4:8], alone)
    else:  # matrix libraries choose by shape
        assert (beside[4:8] - alone).abs().max() < backend.tolerance


def test_the_kernel_is_chosen_by_device() -> None:
    assert kernel_for(torch.device("cpu"), torch.bfloat16, 64) is plain_kernel


def test_what_the_plain_kernel_is_told_to_be_the_longest_moves_no_bit() -> None:
    """Few values, each enough, in whole blocks."""
    most = 5 * BLOCK + 7
    told = [plain_longest(n, most) for n in (0, 1, BLOCK, BLOCK + 1, 4 * BLOCK + 1, most)]
    assert told == [BLOCK, BLOCK, BLOCK, 2 * BLOCK, most, most]
    assert plain_longest(9, 40) == 40
    keys, values = (torch.randn(ROWS, SIZE) for _ in "kv")
    q = torch.randn(8, 2, SIZE)
    cpu = Backend(plain_kernel, "cpu", torch.float32, 0.0)
    units = units_of(cpu, [(7, 300, 4), (400, 20, 4)], causal=True)
    outs = [
        plain_kernel(q, keys, values, replace(units, longest=n)) for n in (told[0], told[3], most)
    ]
    assert all(torch.equal(a, b) for out in outs[1:] for a, b in zip(out, outs[0], strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_varlen_kernel_serves_half_precision_on_cuda(
    dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    """And where it does not serve, that is said once. `pytest -m gpu`."""
    kernel_for.cache_clear()
    found = {kernel_for(torch.device("cuda"), dtype, 64) for _ in range(3)}
    assert found == {varlen_kernel if dtype == torch.bfloat16 else plain_kernel}
    assert len(caplog.records) == (dtype == torch.float32)
