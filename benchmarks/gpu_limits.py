"""What the GPU can do at most, measured: the bandwidth of a copy, and the rate of a matrix product."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

_COPIED = 4 << 30
_SIZE = 8192


@dataclass(frozen=True, slots=True)
class Limits:
    """The two ceilings of one GPU."""

    bytes_per_second: float
    """Read and written together."""
    flops_per_second: float

    @classmethod
    def measure(cls, dtype: torch.dtype) -> Limits:
        """Medians of ten, on random data."""
        source = torch.randn(_COPIED // 4, device="cuda")
        target = torch.empty_like(source)
        copy = _median(lambda: target.copy_(source))
        a, b = (torch.randn(_SIZE, _SIZE, device="cuda", dtype=dtype) for _ in range(2))
        a @ b
        product = _median(lambda: a @ b)
        return cls(2 * _COPIED / copy, 2 * _SIZE**3 / product)


def seconds(work: Callable[[], object]) -> float:
    """Seconds of the GPU from the first kernel of `work` to its last."""
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    work()
    ended.record()
    ended.synchronize()
    return began.elapsed_time(ended) / 1e3


def _median(work: Callable[[], object]) -> float:
    return statistics.median(seconds(work) for _ in range(10))
