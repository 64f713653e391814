"""Which kernel computes a linear layer of few rows: measured where the engine is built."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import partial

import torch
import torch.nn.functional as F

from cleave.runtime.engines.inductor.small import Blocks, small_linear

Tensor = torch.Tensor
_VECTOR = (
    Blocks(2, 1024, 2),
    Blocks(4, 512, 4),
    Blocks(4, 1024, 4),
    Blocks(4, 1024, 8),
    Blocks(8, 512, 4),
)
_MATRIX = (Blocks(16, 128, 2, 6), Blocks(32, 128, 4, 5), Blocks(64, 64, 4, 6), Blocks(64, 128, 4, 4))
"""From a wider search on an H200: for every shape one of them is within 2 % of the fastest."""
_COLD = 200 << 20
"""Bytes of weights that are read in turn, so that none is still in the GPU's cache."""
_LAUNCH = 2e-6
"""Seconds of a launch that is spared."""
_MARGIN = 0.98
"""An own kernel has to be faster than the library's by this factor."""


@dataclass(frozen=True, slots=True)
class Linear:
    """What a linear layer is, as far as its speed goes."""

    rows: int
    """Rows of its input."""
    height: int
    """Rows of its weight."""
    width: int
    norm: bool = False
    residual: bool = False
    swiglu: bool = False


class Chooser:
    """Times the candidates for a layer once, and remembers the fastest."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._chosen: dict[Linear, Blocks | None] = {}

    def __call__(self, layer: Linear) -> Blocks | None:
        """The blocks of the own kernel; None where the library's product is faster."""
        if layer not in self._chosen:
            self._chosen[layer] = self._choose(layer)
        return self._chosen[layer]

    @property
    def chosen(self) -> dict[Linear, Blocks | None]:
        """What was chosen so far."""
        return dict(self._chosen)

    def _choose(self, layer: Linear) -> Blocks | None:
        height, width = layer.height, layer.width
        out = height // 2 if layer.swiglu else height
        make = torch.Generator(self._device).manual_seed(0)
        options = {"dtype": self._dtype, "device": self._device, "generator": make}
        count = max(2, -(-_COLD // (height * width * self._dtype.itemsize)))
        weights = [torch.randn(height, width, **options) for _ in range(count)]  # type: ignore[call-overload]
        x = torch.randn(layer.rows, width, **options)  # type: ignore[call-overload]
        norm = torch.ones_like(x[0]) if layer.norm else None
        residual = x.new_zeros(layer.rows, out) if layer.residual else None
        spared = _LAUNCH * (layer.norm + layer.swiglu)
        product = partial(F.linear, x)
        best = (_seconds(x, [partial(product, weight) for weight in weights]) + spared) * _MARGIN
        fastest = None
        for blocks in _VECTOR if layer.rows == 1 else _MATRIX:
            rest = (norm, residual, 1e-5, layer.swiglu, list(astuple(blocks)))
            taken = _seconds(x, [partial(small_linear, x, weight, *rest) for weight in weights])
            if taken < best:
                best, fastest = taken, blocks
        return fastest


def _seconds(x: Tensor, calls: Sequence[Callable[[], Tensor]], repeats: int = 5) -> float:
    """Seconds of one call on the GPU, in a graph, each after a short kernel that writes its input `x`."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            x.neg_()
            call()
    taken: list[float] = []
    for _ in range(repeats):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        began.record()
        graph.replay()
        ended.record()
        ended.synchronize()
        taken.append(began.elapsed_time(ended) / len(calls) / 1e3)
    return statistics.median(taken)
