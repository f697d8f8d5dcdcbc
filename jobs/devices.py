"""Devices by what a roofline needs: data sheets of GPUs, and this machine as the probe finds it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """A device: bytes per second from its memory, dense operations per second."""

    name: str
    bandwidth: float
    flops: float


@dataclass(frozen=True)
class Gpu(Device):
    """A GPU by its data sheet, operations in bf16; `memory` in bytes."""

    memory: float


GPUS: dict[str, Gpu] = {
    g.name: g
    for g in (
        Gpu("L40S", 0.864e12, 362e12, 48e9),
        Gpu("A100-80G", 2.039e12, 312e12, 80e9),
        Gpu("H100", 3.35e12, 989e12, 80e9),
        Gpu("H200", 4.8e12, 989e12, 141e9),
    )
}
HERE = "here"


def find_device(name: str, dtype: str = "bfloat16") -> Device:
    """A GPU of the table, or `here`: this machine, measured in a few seconds.

    Raises:
        ValueError: another name.
    """
    if name == HERE:
        return measure_device(dtype)
    if name not in GPUS:
        raise ValueError(f"device is {name!r}: it must be {HERE} or one of {', '.join(GPUS)}")
    return GPUS[name]


def measure_device(dtype: str) -> Device:
    """This machine, as a product of matrices in `dtype` and a pass over memory find it."""
    from jobs.bench.probe import peaks

    found = peaks(dtype)
    return Device(
        f"{HERE} ({found['device']})",
        float(found["peak_gbs"]) * 1e9,
        float(found["peak_gflops"]) * 1e9,
    )
