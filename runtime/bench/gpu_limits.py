"""What one GPU can do, measured by torch: bytes copied a second, and operations a second of a product."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from cleave.errors import BenchError
from cleave.kvcache.budget import mib
from cleave.runtime.bench.limits import Limits

_CACHES = 4
"""A copy is this many times the GPU's cache, at least."""
_LARGEST_COPY = 1 << 30
_SIZES = (8192, 4096, 2048)
"""M, N and K of the matrix product: the largest one that there is room for."""
_TRIES = 10


class GpuProbe:
    """See `cleave.runtime.bench.probe.Probe`."""

    threads: int | None = None

    def __init__(self, device: str, dtype: str) -> None:
        """`device` as torch names it; `dtype` is that of the product. Takes up to 3.4 GB of the GPU's memory
        until `close`, and no more than three quarters of what is free.

        Raises BenchError where that is too little to measure with.
        """
        properties = torch.cuda.get_device_properties(device)
        self.device: str = properties.name
        self.cache_bytes: int = properties.L2_cache_size
        self._dtype = dtype
        free, _ = torch.cuda.mem_get_info(device)
        kind = getattr(torch, dtype)
        copied, size = sizes(free, self.cache_bytes, kind.itemsize)
        source = torch.randn(copied // 4, device=device)
        self._copied = source, torch.empty_like(source)
        a, b = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
        self._factors = a, b, torch.empty_like(a)
        self.measure()  # loads the kernels

    def measure(self) -> Limits:
        """Medians of ten; takes a tenth of a second."""
        source, target = self._copied
        a, b, product = self._factors
        copying = _median(lambda: target.copy_(source))
        multiplying = _median(lambda: torch.mm(a, b, out=product))
        return Limits(2 * source.nbytes / copying, {self._dtype: 2 * len(a) ** 3 / multiplying})

    def close(self) -> None:
        """Give the memory back."""
        del self._copied, self._factors
        torch.cuda.empty_cache()


def sizes(free: int, cache: int, item: int) -> tuple[int, int]:
    """Bytes to copy, and the rows of the square matrices to multiply, which take three quarters of
    `free` at most.

    Raises BenchError where a copy of several times the cache does not fit.
    """
    copied = min(max(_CACHES * cache, _LARGEST_COPY), free // 4)
    size = next((size for size in _SIZES if 3 * size**2 * item <= (free - 2 * copied) // 2), 0)
    if copied < _CACHES * cache or not size:
        raise BenchError(
            f"{mib(free)} of the GPU's memory are free, too little to measure its limits with; "
            "leave it more: a smaller KV cache (--kv_cache_bytes), or fewer requests at once"
        )
    return copied // 4 * 4, size


def seconds(work: Callable[[], object]) -> float:
    """Seconds of the current GPU from the first kernel of `work` to its last."""
    events: Any = torch.cuda.Event  # untyped in torch
    began, ended = (events(enable_timing=True) for _ in range(2))
    began.record()
    work()
    ended.record()
    ended.synchronize()
    return float(began.elapsed_time(ended)) / 1e3


def _median(work: Callable[[], object]) -> float:
    return statistics.median(seconds(work) for _ in range(_TRIES))
