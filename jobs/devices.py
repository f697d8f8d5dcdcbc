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
# As drivers name them. Not here, for their data sheets say something else: GH200, H200 NVL, H100
# PCIe, A100 PCIe and those of 40 GB.
_DRIVER_NAMES = {
    "NVIDIA L40S": "L40S",
    "NVIDIA A100-SXM4-80GB": "A100-80G",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA H200": "H200",
}
HERE = "here"


def gpu_named(name: str) -> Gpu | None:
    """The GPU whose driver says exactly this name; None where its data sheet is not known here."""
    return GPUS.get(_DRIVER_NAMES.get(name, ""))


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
