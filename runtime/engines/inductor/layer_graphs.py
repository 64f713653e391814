"""Prefill and mixed steps of few rows: a CUDA graph for each piece, and the attention server between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from cleave.runtime.engines.engine import Attention
from cleave.runtime.engines.inductor.graphs import GraphPool, least_that_holds

Tensor = torch.Tensor
Values = dict[str, Tensor]
Cut = tuple[int, Tensor, Tensor, Tensor, Tensor]
"""What the attention server is called with: layer, q, k, v and out."""

_STEP = 32
_MOST_ROWS = 512
"""A step of more rows keeps the GPU busy for longer than the host needs to launch it kernel by kernel."""
_TYPES = {2: "<i2", 4: "<i4"}
"""Of numbers of so many bytes, whatever they mean."""


def layer_sizes(max_tokens: int) -> tuple[int, ...]:
    """The rows that such steps are padded to, for an engine whose steps have at most `max_tokens`."""
    return tuple(range(2 * _STEP, min(_MOST_ROWS, max_tokens) + 1, _STEP))


class LayerGraphs:
    """The graphs of steps that are not decode steps.

    Attention divides each of these steps otherwise, so its kernels are launched as ever, and only what lies
    between its calls is replayed.
    """

    def __init__(self, sizes: tuple[int, ...], pool: GraphPool) -> None:
        """`sizes` are the rows that steps are padded to, in order."""
        self.sizes = sizes
        self._pool = pool
        self._captured: dict[int, tuple[list[tuple[torch.cuda.CUDAGraph, Cut]], Values]] = {}

    def size_for(self, tokens: int) -> int | None:
        """The least size that holds a step of so many tokens; None where none does, or it is not captured."""
        size = least_that_holds(self.sizes, tokens)
        return size if size in self._captured else None

    @property
    def is_captured(self) -> bool:
        """Whether all sizes are."""
        return len(self._captured) == len(self.sizes)

    def capture(self, size: int, layers: Iterator[Cut], count: int, values: Values) -> None:
        """Capture the pieces of a step of `size` rows; the largest comes first.

        `layers` launches what comes before each of the `count` calls of the attention server, and leaves in
        `values` what the last piece takes. What it uses must have been used: it may not be compiled here.
        """
        captured: list[tuple[torch.cuda.CUDAGraph, Cut]] = []
        for _ in range(count):
            graph, (layer, q, k, v, out) = self._pool.capture(lambda: next(layers))
            # Not the tensors themselves: what comes later in a step may have their memory.
            captured.append((graph, (layer, _borrowed(q), _borrowed(k), _borrowed(v), _borrowed(out))))
        next(layers, None)
        self._captured[size] = captured, values

    def run(self, size: int, attention: Attention) -> Values:
        """Replay the pieces of a step; gives back what the last piece takes."""
        captured, values = self._captured[size]
        for graph, cut in captured:
            graph.replay()
            attention.run(*cut)
        return values

    def clear(self) -> None:
        """Give the graphs and their memory back."""
        self._captured.clear()


def run_layers(layers: Iterator[Cut], attention: Attention) -> None:
    """Launch the pieces of a step kernel by kernel."""
    for cut in layers:
        attention.run(*cut)


class _Memory:
    """Device memory as CUDA's array interface names it."""

    def __init__(self, tensor: Tensor) -> None:
        self.__cuda_array_interface__ = {
            "version": 2,
            "data": (tensor.data_ptr(), False),
            "typestr": _TYPES[tensor.itemsize],
            "shape": tuple(tensor.shape),
            "strides": tuple(stride * tensor.itemsize for stride in tensor.stride()),
        }


def _borrowed(tensor: Tensor) -> Tensor:
    """A tensor over the same memory, which does not keep it from being used again."""
    memory: Any = _Memory(tensor)
    return torch.as_tensor(memory, device=tensor.device).view(tensor.dtype)
