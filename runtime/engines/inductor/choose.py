"""Which kernel computes a linear layer of few rows: measured where the engine is built."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from cleave.runtime.engines.inductor.small_launch import Blocks, add_norm, block_rows, linear, multiply, norm

Tensor = torch.Tensor
Call = Callable[[Tensor], Any]
_VECTOR = (
    Blocks(4, 512, 4),
    Blocks(4, 1024, 4),
    Blocks(2, 2048, 4),
    Blocks(4, 1024, 8),
    Blocks(8, 512, 4),
)
_ROWS = (
    Blocks(2, 0, 8, turns=1),
    Blocks(2, 0, 4, turns=2),
    Blocks(2, 0, 8, turns=8),
    Blocks(2, 0, 4, turns=4),
    Blocks(1, 0, 4, turns=4),
)
_MATRIX = (Blocks(64, 128, 4, 4), Blocks(64, 128, 4, 3), Blocks(128, 64, 4, 4), Blocks(32, 128, 4, 5))
_SPLIT = (Blocks(64, 64, 4, 6, 3), Blocks(64, 128, 4, 4, 3), Blocks(64, 128, 4, 3, 6))
"""From a wider search on an H200: for every shape one of them is within 2 % of the fastest."""
_BAND_SWIGLU = {64: (Blocks(128, 128, 8, 3), Blocks(128, 64, 8, 4)), 128: (Blocks(128, 64, 8, 3),)}
_BAND_SPLIT = {64: (Blocks(64, 64, 4, 5, 3),), 128: (Blocks(64, 64, 4, 4, 4),)}
"""The same for bands, by their most rows; all else of so many rows the library multiplies faster."""
_COLD = 200 << 20
"""Bytes of weights that are read in turn, so that none is still in the GPU's cache."""
_LAUNCH = 3e-6
"""Seconds of a launch that is spared, behind which the next kernel could not have started early."""
_MARGIN = 0.98
"""A candidate has to be faster by this factor than one that stands before it; the library is the first."""
_ROUNDS = 9
_THREADS = 32
"""Of a warp."""
_MOST_HELD = 64
"""Values of a tile that a thread holds at most, those of the next tile aside."""


@dataclass(frozen=True, slots=True)
class Linear:
    """What a linear layer is, as far as its speed goes."""

    rows: int
    """Rows of its input; of a band, the most."""
    height: int
    """Rows of its weight."""
    width: int
    norm: bool = False
    residual: bool = False
    swiglu: bool = False
    norm_after: bool = False
    """The residual is added, and what comes of it normed, in one launch: `add_norm`."""


class Chooser:
    """Times the candidates for a layer once, and remembers the fastest."""

    def __init__(self, dtype: torch.dtype, device: torch.device, kept: Path | None = None) -> None:
        """`kept` is a file that `keep` wrote for such a device, or None."""
        self._dtype, self._device = dtype, device
        self._chosen = {} if kept is None else _read(kept)

    def __call__(self, layer: Linear) -> Blocks | None:
        """The blocks of the own kernel; None where the library's product is faster."""
        if layer not in self._chosen:
            self._chosen[layer] = self._choose(layer)
        return self._chosen[layer]

    @property
    def chosen(self) -> dict[Linear, Blocks | None]:
        """What was chosen so far."""
        return dict(self._chosen)

    def keep(self, file: Path) -> None:
        """Write what was chosen, for the next start."""
        lines = [
            {"layer": asdict(layer), "blocks": blocks and astuple(blocks)}
            for layer, blocks in self._chosen.items()
        ]
        file.write_text(json.dumps(lines, indent=1) + "\n", "utf-8")

    def compile(self, layers: Iterable[Linear]) -> None:
        """Compile the kernels of all candidates for these layers; for use in `compiled_side_by_side`."""
        for layer in layers:
            if layer not in self._chosen:
                x, calls = self._calls(layer, _candidates(layer), torch.device("meta"), 1)
                for candidate in calls:
                    for call in candidate:
                        call(norm(x, torch.empty_like(x[0]), 1e-5))

    def _choose(self, layer: Linear) -> Blocks | None:
        candidates = _candidates(layer)
        if len(candidates) == 1:
            return candidates[0]
        count = max(2, -(-_COLD // (layer.height * layer.width * self._dtype.itemsize)))
        x, calls = self._calls(layer, candidates, self._device, count)
        seconds = seconds_of(x, calls)
        if not layer.norm_after:
            seconds[0] += _LAUNCH * (layer.norm + layer.swiglu + layer.residual)
        return fastest(candidates, seconds)

    def _calls(
        self, layer: Linear, candidates: Sequence[Blocks | None], device: torch.device, count: int
    ) -> tuple[Tensor, list[list[Call]]]:
        """An input, and for each candidate the layer of each of `count` weights."""
        out = layer.height // 2 if layer.swiglu else layer.height
        options: dict[str, Any] = {"dtype": self._dtype, "device": device}
        weights = [torch.empty(layer.height, layer.width, **options) for _ in range(count)]
        x = torch.empty(layer.rows, layer.width, **options)
        if device.type != "meta":
            make = torch.Generator(device).manual_seed(0)
            for tensor in (*weights, x):
                tensor.normal_(generator=make)
        factors = torch.ones_like(x[0]) if layer.norm else None
        residual = x.new_zeros(layer.rows, out) if layer.residual else None
        calls: list[list[Call]] = []
        for blocks in candidates:
            if layer.norm_after and residual is not None:
                calls.append([partial(_and_norm, one, residual, blocks) for one in weights])
            elif blocks is None:
                calls.append([partial(F.linear, weight=one) for one in weights])
            else:
                rest = (factors, residual, 1e-5, layer.swiglu, blocks)
                calls.append([partial(_own, one, rest) for one in weights])
        return x, calls


def _candidates(layer: Linear) -> tuple[Blocks | None, ...]:
    """The library's product first."""
    if layer.rows in _BAND_SPLIT:
        own = _BAND_SPLIT if layer.norm_after else _BAND_SWIGLU if layer.swiglu else {}
        return (None, *own.get(layer.rows, ()))
    if layer.norm_after:
        return (None, *_SPLIT)
    if layer.rows > 1:
        return (None, *_MATRIX)
    tiles = 2 if layer.swiglu else 1
    held = (1 << (layer.width - 1).bit_length()) * tiles // _THREADS
    return (None, *_VECTOR, *(one for one in _ROWS if one.n * held <= _MOST_HELD * one.warps))


def _read(file: Path) -> dict[Linear, Blocks | None]:
    """What `Chooser.keep` wrote; nothing where there is no such file, or it is damaged."""
    if not file.is_file():
        return {}
    try:
        lines = json.loads(file.read_text("utf-8"))
        return {Linear(**line["layer"]): line["blocks"] and Blocks(*line["blocks"]) for line in lines}
    except (ValueError, TypeError, KeyError):
        return {}


def fastest(candidates: Sequence[Blocks | None], seconds: Sequence[float]) -> Blocks | None:
    """The first one that none is faster than by more than what timings differ by."""
    least = min(seconds)
    return next(one for one, taken in zip(candidates, seconds, strict=True) if taken * _MARGIN <= least)


def _own(weight: Tensor, rest: tuple[Any, ...], x: Tensor) -> Any:
    return linear(x, weight, *rest)


def _and_norm(weight: Tensor, residual: Tensor, blocks: Blocks | None, x: Tensor) -> Any:
    """With the residual and the norm behind it, as `fuse_small_linears` makes them."""
    if blocks is None:
        parts = F.linear(x, weight)[None]
    else:
        parts = multiply(x, weight, None, False, blocks, block_rows(len(x)))
    return add_norm(parts, residual, residual[0], 1e-5)


def seconds_of(x: Tensor, candidates: Sequence[Sequence[Call]]) -> list[float]:
    """Seconds of one call of each candidate, each call behind a norm that gives it its input, as in a model.

    Every candidate is a graph. They are replayed in turn, and the medians count: a GPU that is slower for a
    while is so for all of them.
    """
    ones = torch.ones_like(x[0])
    graphs = [_capture(x, ones, calls) for calls in candidates]
    taken: list[list[float]] = [[] for _ in graphs]
    for _ in range(_ROUNDS):
        for graph, times in zip(graphs, taken, strict=True):
            times.append(math.inf if graph is None else _replayed(graph))
    return [statistics.median(times) / len(calls) for times, calls in zip(taken, candidates, strict=True)]


def _capture(x: Tensor, ones: Tensor, calls: Sequence[Call]) -> torch.cuda.CUDAGraph | None:
    """None where the GPU has too little shared memory for the candidate."""
    from triton.runtime.errors import OutOfResources

    try:
        for call in calls:
            call(norm(x, ones, 1e-5))  # compiled here: a capture must not
    except OutOfResources:
        return None
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    # Only this thread's calls are held to the rules of a capture: another model may be serving meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for call in calls:
            call(norm(x, ones, 1e-5))
    return graph


def _replayed(graph: torch.cuda.CUDAGraph) -> float:
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    began.record()
    graph.replay()
    ended.record()
    ended.synchronize()
    return float(began.elapsed_time(ended)) / 1e3
