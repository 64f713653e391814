"""CUDA graphs of torch operations on the host: as on a GPU, what is captured is not carried out, and a replay
writes to where the tensors lay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

T = TypeVar("T")
Work = Callable[[], None]


class _Recorder(TorchDispatchMode):
    """Writes down every operation that is not a view. What it makes is there at once, without its values."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded: list[Work] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.is_view:
            return func(*args, **kwargs)
        if func._schema.is_mutable:
            self.recorded.append(lambda: func(*args, **kwargs))
            return kwargs.get("out", args[0]) if func._schema.returns else None
        made = func(*args, **kwargs)

        def again() -> None:
            for place, value in zip(tensors_of(made), tensors_of(func(*args, **kwargs)), strict=True):
                place.copy_(value)

        for tensor in tensors_of(made):
            spoil(tensor)
        self.recorded.append(again)
        return made


class FakeGraph:
    """What was captured."""

    def __init__(self, recorded: list[Work]) -> None:
        self._recorded = recorded
        self.replays = 0

    def replay(self) -> None:
        """Carry it out."""
        self.replays += 1
        for work in self._recorded:
            work()


class FakePool:
    """In the place of `GraphPool`."""

    def __init__(self) -> None:
        self.graphs: list[FakeGraph] = []

    def capture(self, work: Callable[[], T]) -> tuple[FakeGraph, T]:
        """See `GraphPool.capture`."""
        with _Recorder() as recorder:
            result = work()
        self.graphs.append(FakeGraph(recorder.recorded))
        return self.graphs[-1], result


def tensors_of(values: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def spoil(tensor: torch.Tensor) -> None:
    """So that nobody takes for a result what was never computed."""
    tensor.fill_(torch.nan if tensor.is_floating_point() else 0)
