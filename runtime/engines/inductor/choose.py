"""Which kernel computes a linear layer of few rows: measured where the engine is built."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from cleave.runtime.engines.inductor.small import Blocks, small_linear, small_norm

Tensor = torch.Tensor
_VECTOR = (
    Blocks(4, 512, 4),
    Blocks(4, 1024, 4),
    Blocks(2, 1024, 2),
    Blocks(2, 2048, 4),
    Blocks(4, 1024, 8),
    Blocks(8, 512, 4),
)
_MATRIX = (
    Blocks(64, 128, 4, 4),
    Blocks(64, 128, 4, 3),
    Blocks(64, 64, 4, 6),
    Blocks(128, 64, 4, 4),
    Blocks(128, 128, 8, 3),
    Blocks(32, 128, 4, 5),
    Blocks(16, 128, 2, 6),
    Blocks(16, 256, 2, 4),
)
"""From a wider search on an H200: for every shape one of them is within 2 % of the fastest."""
_COLD = 200 << 20
"""Bytes of weights that are read in turn, so that none is still in the GPU's cache."""
_LAUNCH = 2e-6
"""Seconds of a launch that is spared."""
_MARGIN = 0.98
"""A candidate has to be faster by this factor than one that stands before it, the library's being the first."""
_ROUNDS = 9


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
        candidates = _VECTOR if layer.rows == 1 else _MATRIX
        calls: list[list[Callable[[Tensor], Tensor]]] = [[partial(F.linear, weight=one) for one in weights]]
        for blocks in candidates:
            rest = (norm, residual, 1e-5, layer.swiglu, list(astuple(blocks)))
            calls.append([partial(_own, one, rest) for one in weights])
        library, *own = seconds_of(x, calls)
        spared = _LAUNCH * (layer.norm + layer.swiglu + layer.residual)
        return fastest((None, *candidates), (library + spared, *own))


def fastest(candidates: Sequence[Blocks | None], seconds: Sequence[float]) -> Blocks | None:
    """The first one that none is faster than by more than what timings differ by."""
    least = min(seconds)
    return next(one for one, taken in zip(candidates, seconds, strict=True) if taken * _MARGIN <= least)


def _own(weight: Tensor, rest: tuple[Any, ...], x: Tensor) -> Tensor:
    return small_linear(x, weight, *rest)


def seconds_of(x: Tensor, candidates: Sequence[Sequence[Callable[[Tensor], Tensor]]]) -> list[float]:
    """Seconds of one call of each candidate, each call behind a norm that gives it its input, as in a model.

    Every candidate is a graph. They are replayed in turn, and the medians count: a GPU that is slower for a
    while is so for all of them.
    """
    ones = torch.ones_like(x[0])
    graphs = [_capture(x, ones, calls) for calls in candidates]
    taken: list[list[float]] = [[] for _ in graphs]
    for _ in range(_ROUNDS):
        for graph, times in zip(graphs, taken, strict=True):
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            began.record()
            graph.replay()
            ended.record()
            ended.synchronize()
            times.append(began.elapsed_time(ended) / 1e3)
    return [statistics.median(times) / len(calls) for times, calls in zip(taken, candidates, strict=True)]


def _capture(x: Tensor, ones: Tensor, calls: Sequence[Callable[[Tensor], Tensor]]) -> torch.cuda.CUDAGraph:
    for call in calls:
        call(small_norm(x, ones, 1e-5))  # compiled here: a capture must not
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call(small_norm(x, ones, 1e-5))
    return graph
