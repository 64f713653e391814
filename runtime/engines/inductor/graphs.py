"""CUDA graphs: what is launched again and again in the same way, captured once and replayed in one launch."""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Callable, Hashable
from typing import TypeVar, cast

import torch

T = TypeVar("T")


def batch_sizes(max_sequences: int, least: int = 1) -> tuple[int, ...]:
    """The sizes that decode steps are padded to: powers of two, from 32 on every eighth, and the largest.

    None is below `least`.
    """
    largest = max(least, max_sequences)
    sizes = [size for size in (1, 2, 4, 8, 16) if least <= size < largest]
    sizes += range(32, largest, 8)
    return (*sizes, largest)


def least_that_holds(sizes: tuple[int, ...], tokens: int) -> int | None:
    """The least of some sizes, in order, that holds a step of so many tokens; None where none does."""
    index = bisect_left(sizes, tokens)
    return sizes[index] if index < len(sizes) else None


class GraphPool:
    """Captures the graphs of one engine. They share their memory, so the largest one should come first.

    A graph reads and writes tensors where they lay when it was captured: the engine's inputs and the buffers
    of the attention server. Of what it gives, the next replay of any of them may overwrite what nobody held
    when that was captured.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def capture(self, work: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
        """The graph of what `work` launches, which is not run, and what it gives."""
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            # Other threads may go on using the GPU: one may be serving another model.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                result = work()
            except BaseException:
                with contextlib.suppress(RuntimeError):  # what went wrong may have ended the capture too
                    graph.capture_end()
                raise
            graph.capture_end()
        current.wait_stream(self._stream)
        return graph, result


class DecodeGraphs:
    """The graphs of decode steps of one engine, attention included: see `GraphPool`."""

    def __init__(self, sizes: tuple[int, ...], device: torch.device, pool: GraphPool | None = None) -> None:
        """`sizes` are what steps are padded to; `pool` None: one of their own."""
        self.sizes = sizes
        self._pool = GraphPool(device) if pool is None else pool
        self._captured: dict[tuple[int, Hashable], tuple[torch.cuda.CUDAGraph, object]] = {}

    def size_for(self, tokens: int) -> int | None:
        """The least size that holds a step of so many tokens; None where none does."""
        return least_that_holds(self.sizes, tokens)

    def run(self, size: int, key: Hashable, step: Callable[[], T]) -> T:
        """Replay what was captured for `size` and `key`; the first time, run `step` and capture it.

        `step` must launch the same kernels every time. Returns what it gives.
        """
        captured = self._captured.get((size, key))
        if captured is not None:
            graph, result = captured
            graph.replay()
            return cast(T, result)
        given = step()  # for real: kernels that are compiled on first use cannot be captured
        self.capture(size, key, step)
        return given

    def capture(self, size: int, key: Hashable, step: Callable[[], object]) -> None:
        """Capture `step` for `size` and `key`, without running it: for whoever has just run it.

        A step is never run twice: it takes tokens from where it leaves its own.
        """
        self._captured[size, key] = self._pool.capture(step)

    def clear(self) -> None:
        """Give the graphs and their memory back."""
        self._captured.clear()
