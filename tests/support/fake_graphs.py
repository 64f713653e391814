"""CUDA graphs of torch operations on the host: what is captured is not carried out, and replayed later."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from fake_tensorrt_rtx import RuleBroken, State
from torch.utils._python_dispatch import TorchDispatchMode

Work = Callable[[], None]


class _Recorder(TorchDispatchMode):
    """Writes down every operation that changes memory, in place of carrying it out.

    Views are harmless and are made. A new tensor would be memory of the capture: its engine needs none.
    """

    def __init__(self, recorded: list[Work]) -> None:
        super().__init__()
        self._recorded = recorded

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.is_view:
            return func(*args, **kwargs)
        if not func._schema.is_mutable:
            raise RuleBroken(f"{func} makes a new tensor while a graph is captured")
        self._recorded.append(lambda: func(*args, **kwargs))
        outputs = [
            kwargs[argument.name]
            for argument in func._schema.arguments
            if argument.kwarg_only and argument.alias_info is not None
        ]
        return tuple(outputs) if len(outputs) > 1 else kwargs.get("out", args[0])


class FakeGraphs:
    """In the place of `DecodeGraphs`, for one fake library."""

    def __init__(self, state: State, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes
        self.captures: list[tuple[int, Hashable]] = []
        self.replays = 0
        self._state = state
        self._captured: dict[tuple[int, Hashable], tuple[list[Work], torch.Tensor]] = {}

    def run(self, size: int, key: Hashable, step: Callable[[], torch.Tensor]) -> torch.Tensor:
        """See `DecodeGraphs.run`."""
        if (size, key) in self._captured:
            recorded, result = self._captured[size, key]
            for work in recorded:
                work()
            self.replays += 1
            return result
        given = step()
        self.capture(size, key, step)
        return given

    def capture(self, size: int, key: Hashable, step: Callable[[], torch.Tensor]) -> None:
        """See `DecodeGraphs.capture`."""
        self._state.recorded = []
        try:
            with _Recorder(self._state.recorded):
                result = step()
            self._captured[size, key] = self._state.recorded, result
        finally:
            self._state.recorded = None
        self.captures.append((size, key))

    def clear(self) -> None:
        """See `DecodeGraphs.clear`."""
        self._captured.clear()
