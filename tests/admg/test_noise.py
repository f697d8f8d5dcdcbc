"""The noise: its bits against SplitMix64 written anew, its laws by chi-square and correlation."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from admg import noise
from tests.admg.chi_square import LEVEL, chi_square, independent

MASK = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15
PURPOSES = (noise.TARGET, noise.DRAFT, noise.RESIDUAL, noise.ACCEPT)
# Two-sided 4.5 standard errors: one seed in 150 000 exceeds it.
SIGMAS = 4.5


def mix(z: int) -> int:
    """SplitMix64's finaliser (Steele, Lea, Flood 2014) on Python's own integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def unmix(z: int) -> int:
    """The inverse of `mix`, which makes keys for any wanted bits."""

    def unshift(z: int, shift: int) -> int:
        x = z
        for _ in range(64 // shift + 1):
            x = z ^ (x >> shift)
        return x

    z = (unshift(z, 31) * pow(0x94D049BB133111EB, -1, 1 << 64)) & MASK
    z = (unshift(z, 27) * pow(0xBF58476D1CE4E5B9, -1, 1 << 64)) & MASK
    return unshift(z, 30)


def signed(z: int) -> int:
    return z - (1 << 64) if z >= 1 << 63 else z


def open_unit(bits: int) -> float:
    """The uniform number of 64 hash bits: 52 signed bits and a half, about the middle."""
    return ((signed(bits) >> 12) + 0.5) / 2**52 + 0.5


def keys(
    count: int,
    *,
    seed: int = 0,
    key: str = "row",
    purpose: int = noise.TARGET,
    first: int = 0,
    salt: int = 0,
) -> list[int]:
    """Position keys of one row's positions first .. first + count - 1."""
    base = noise.stream(seed, key)
    return [noise.position_key(base, first + t, purpose, salt) for t in range(count)]


def tensor(values: Iterable[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int64)


def draws(law: np.ndarray, position_keys: list[int]) -> np.ndarray:
    """One race draw from the law per key, a few rows at a time to stay in cache."""
    hashes = noise.token_hash(torch.arange(len(law)))
    drawn = []
    for part in tensor(position_keys).split(max(1, (1 << 18) // len(law))):
        laws = torch.tensor(law).expand(len(part), -1)
        drawn.append(noise.race(laws, noise.exponential(part, hashes)))
    return torch.cat(drawn).numpy()


# Bits


def test_the_test_knows_splitmix64() -> None:
    """The generator's published first outputs for seed 1234567."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [mix((1234567 + GAMMA * n) & MASK) for n in range(1, 4)] == published
    assert all(unmix(mix(z)) == z for z in (0, 1, MASK, GAMMA, 1234567))


@pytest.mark.parametrize("base", [0, 1, 1234567, MASK, noise.stream(3, "row")])
def test_position_keys_are_the_outputs_of_splitmix64(base: int) -> None:
    """Output number n of a SplitMix64 seeded with the base: n counts purposes, then positions."""
    state = base
    for position in range(50):
        for purpose in PURPOSES:
            state = (state + GAMMA) & MASK
            assert noise.position_key(base, position, purpose) == signed(mix(state))


@pytest.mark.parametrize("salt", [0, 1, 77])
@pytest.mark.parametrize("position", [0, 5, 2**20, 2**31])
def test_salted_keys_are_far_outputs_of_splitmix64(position: int, salt: int) -> None:
    counter = ((salt * 2**32 + position) * 4 + noise.ACCEPT + 1) & MASK
    expected = signed(mix((99 + GAMMA * counter) & MASK))
    assert noise.position_key(99, position, noise.ACCEPT, salt) == expected


def test_token_hashes_are_the_finaliser_of_the_next_number() -> None:
    ids = [0, 1, 2, 1023, 49151, 2**31 - 1]
    assert noise.token_hash(tensor(ids)).tolist() == [signed(mix(i + 1)) for i in ids]


def test_exponentials_and_uniforms_against_plain_python() -> None:
    position_keys = [*keys(40), 0, -1, 2**63 - 1, -(2**63)]
    hashes = [mix(i + 1) for i in range(30)]
    found = noise.exponential(tensor(position_keys), noise.token_hash(torch.arange(30)))
    assert found.dtype == torch.float64
    expected = [[-math.log(open_unit(mix((k & MASK) ^ h))) for h in hashes] for k in position_keys]
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0)
    assert noise.uniform(position_keys).tolist() == [
        open_unit(mix(k & MASK)) for k in position_keys
    ]


def test_golden_values() -> None:
    """A job that is resumed with a later version must go on with the same noise."""
    base = noise.stream(0, "a")
    assert [base, noise.position_key(base, 0), noise.position_key(base, 7, noise.DRAFT, 2)] == [
        15270482384145340437,
        -9114370030760917789,
        -8159693568010554089,
    ]
    assert noise.stream(1, "a") != base != noise.stream(0, "b")


def test_streams_do_not_run_into_each_other() -> None:
    """Seed and key are told apart, whatever digits stand where they meet."""
    names = [(1, "2"), (12, ""), (1, "02"), (0, "12"), (2, "1"), (10, "2"), (1, "\x002")]
    assert len({noise.stream(seed, key) for seed, key in names}) == len(names)
    assert all(0 <= noise.stream(seed, key) <= MASK for seed, key in names)


def test_keys_differ_in_everything_that_names_them() -> None:
    found = {
        noise.position_key(noise.stream(seed, key), position, purpose, salt)
        for seed in (0, 1)
        for key in ("a", "b", "ä")
        for position in [*range(200), 2**20, 2**31]
        for purpose in PURPOSES
        for salt in (0, 1, 5)
    }
    assert len(found) == 2 * 3 * 202 * 4 * 3


@pytest.mark.parametrize("vocab", [1, 3, 1000])
def test_the_same_bits_for_shared_and_own_hashes(vocab: int) -> None:
    position_keys = tensor(keys(17))
    hashes = noise.token_hash(torch.arange(vocab))
    shared = noise.exponential(position_keys, hashes)
    assert torch.equal(shared, noise.exponential(position_keys, hashes.expand(17, vocab)))
    assert torch.equal(shared, noise.exponential(position_keys, hashes.repeat(17, 1)))
    # Other candidates, another order: a token's number goes with its id.
    chosen = torch.stack([torch.randperm(vocab, generator=torch.manual_seed(i)) for i in range(17)])
    assert torch.equal(shared.gather(1, chosen), noise.exponential(position_keys, hashes[chosen]))


@pytest.mark.parametrize(("rows", "vocab"), [(70_000, 2), (5, 40_000), (3, 70_000), (2, 65_536)])
def test_the_same_bits_in_any_batch(rows: int, vocab: int) -> None:
    """Sizes at which long inputs may be worked off in parts; any part alone gives the same."""
    position_keys = tensor(keys(rows))
    hashes = noise.token_hash(torch.arange(vocab))
    whole = noise.exponential(position_keys, hashes)
    for part in (slice(0, 1), slice(rows // 2, rows // 2 + 2), slice(rows - 1, rows)):
        assert torch.equal(whole[part], noise.exponential(position_keys[part], hashes))
    tail = noise.exponential(position_keys, hashes[vocab // 2 :])
    assert torch.equal(whole[:, vocab // 2 :], tail)


def test_inputs_are_left_alone_and_empty_ones_are_fine() -> None:
    position_keys, ids = tensor(keys(4)), torch.arange(6)
    hashes = noise.token_hash(ids)
    before = [t.clone() for t in (position_keys, ids, hashes)]
    noise.exponential(position_keys, hashes)
    noise.token_hash(ids)
    assert all(torch.equal(a, b) for a, b in zip(before, (position_keys, ids, hashes), strict=True))
    assert noise.exponential(tensor([]), hashes).shape == (0, 6)
    assert noise.uniform([]).shape == (0,)


def test_uniforms_stay_inside_the_open_interval_at_the_extreme_bits() -> None:
    """Keys whose hash is all zeros, all ones, the lowest and the highest signed number."""
    extremes = [0, MASK, 1 << 63, (1 << 63) - 1]
    found = noise.uniform([signed(unmix(z)) for z in extremes])
    assert bool(((found > 0) & (found < 1)).all())
    assert float(found.min()) == 2**-53
    assert float(found.max()) == 1 - 2**-53
    hashes = noise.token_hash(torch.arange(3))
    chosen = tensor(signed(unmix(z) ^ (int(hashes[1]) & MASK)) for z in extremes)
    exponentials = noise.exponential(chosen, hashes)[:, 1]
    assert bool(((exponentials > 0) & (exponentials < math.inf)).all())
    assert float(exponentials.max()) == pytest.approx(53 * math.log(2))


# Laws


def laws() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(5)
    return {
        "flat 6": np.full(6, 1 / 6),
        "peaked 6": np.array([0.9, 0.09, 0.009, 0.0009, 0.0001, 0.0]),
        "peaked last": np.array([0.001, 0.001, 0.001, 0.0, 0.007, 0.99]),
        "random 64": generator.dirichlet(np.full(64, 0.5)),
        "flat 4096": np.full(4096, 1 / 4096),
        "peaked 4096": generator.dirichlet(np.full(4096, 0.05)),
    }


@pytest.mark.parametrize("name", laws())
def test_race_draws_follow_the_law(name: str) -> None:
    law = laws()[name]
    count, bucket = (100_000, 1) if len(law) < 100 else (8_000, 16)
    drawn = draws(law, keys(count)) // bucket
    expected = law.reshape(-1, bucket).sum(axis=1)
    assert chi_square(np.bincount(drawn, minlength=len(expected)), expected) > LEVEL


def test_race_draws_of_many_rows_at_one_position_follow_the_law() -> None:
    """The other direction: a job's rows, not a row's positions."""
    law = laws()["random 64"]
    rows = [noise.position_key(noise.stream(7, f"row-{i}"), 3) for i in range(50_000)]
    assert chi_square(np.bincount(draws(law, rows), minlength=len(law)), law) > LEVEL


def test_race_draws_of_a_large_vocabulary_follow_zipf() -> None:
    """49152 tokens in buckets of ranks; ranks are spread over the ids."""
    rank = np.random.default_rng(6).permutation(49152)
    law = 1.0 / (1 + rank)
    law /= law.sum()
    bucket = np.floor(3 * np.log2(1 + rank)).astype(int)
    drawn = draws(law, keys(600))
    expected = np.bincount(bucket, weights=law)
    assert chi_square(np.bincount(bucket[drawn], minlength=len(expected)), expected) > LEVEL
    by_id = law.reshape(48, -1).sum(axis=1)
    assert chi_square(np.bincount(drawn // 1024, minlength=48), by_id) > LEVEL


def test_race_never_draws_what_has_no_probability_and_takes_point_masses() -> None:
    law = np.array([0.0, 1e-30, 0.0, 0.0])
    assert set(draws(law, keys(2000))) == {1}
    assert set(draws(np.eye(9)[4], keys(200))) == {4}


def test_uniforms_are_uniform() -> None:
    found = noise.uniform(keys(100_000, purpose=noise.ACCEPT)).numpy()
    counts = np.bincount((found * 256).astype(int), minlength=256)
    assert chi_square(counts, np.full(256, 1 / 256)) > LEVEL


PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "neighbouring positions": ({}, {"first": 1}),
    "positions two apart": ({}, {"first": 2}),
    "row keys": ({}, {"key": "rox"}),
    "seeds": ({}, {"seed": 1}),
    "target and draft": ({}, {"purpose": noise.DRAFT}),
    "draft and residual": ({"purpose": noise.DRAFT}, {"purpose": noise.RESIDUAL}),
    "residual and the next target": ({"purpose": noise.RESIDUAL}, {"first": 1}),
    "salts": ({}, {"salt": 1}),
}


@pytest.mark.parametrize("name", PAIRS)
def test_what_has_another_name_is_independent(name: str) -> None:
    one, other = (keys(60_000, **what) for what in PAIRS[name])
    law = np.array([0.4, 0.25, 0.2, 0.1, 0.04, 0.01])
    assert independent(draws(law, one), draws(law, other), law, law) > LEVEL
    hashes = noise.token_hash(torch.arange(4))
    a, b = (noise.exponential(tensor(k), hashes).numpy() for k in (one, other))
    correlation = np.corrcoef(a, b, rowvar=False)
    assert np.abs(correlation - np.eye(8)).max() < SIGMAS / math.sqrt(len(one))


def test_shared_noise_couples_near_laws_and_is_what_accepts() -> None:
    """Same noise, two laws: equal at least with (1 - TV) / (1 + TV), arXiv 2408.07978."""
    generator = np.random.default_rng(8)
    p = generator.dirichlet(np.ones(12))
    q = 0.8 * p + 0.2 * generator.dirichlet(np.ones(12))
    tv = np.abs(p - q).sum() / 2
    position_keys = keys(40_000)
    equal = (draws(p, position_keys) == draws(q, position_keys)).mean()
    assert (1 - tv) / (1 + tv) - 0.01 < equal <= 1 - tv + 0.01
