"""Whose limits a model is held to: those of the device that its engine computes on."""

from __future__ import annotations

from typing import Protocol

from cleave.export.artifact import Artifact
from cleave.runtime.bench.limits import CpuProbe, Limits
from cleave.runtime.engines.engine import Engine


class Probe(Protocol):
    """Measures the limits of one device."""

    device: str
    """For people: "NVIDIA H200", "2 threads"."""
    cache_bytes: int
    """Of the device's largest cache."""

    @property
    def threads(self) -> int | None:
        """CPU threads that it measures with; None on a GPU."""

    def measure(self) -> Limits:
        """The limits now."""

    def close(self) -> None:
        """Give back memory and threads."""


def make_probe(engine: Engine, threads: int | None) -> Probe:
    """The probe of the engine's device; `threads` are those of the processor, None one for each core.

    Raises BenchError where the device has too little memory left.
    """
    if engine.device == "cpu":
        return CpuProbe(threads)
    # Late, since it brings torch, which an engine on a GPU has brought already.
    from cleave.runtime.bench.gpu_limits import GpuProbe

    return GpuProbe(engine.device, engine.dtype)


def products_in(engine: Engine, artifact: Artifact) -> str:
    """What the engine multiplies in: its dtype, or for quantised weights "int8".

    That of int4 weights too: their operator turns them and the activations into 8-bit integers.
    """
    return engine.dtype if artifact.manifest.quantization is None else "int8"
