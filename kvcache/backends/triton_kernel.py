"""A kernel that is launched again and again with arguments of the same kinds, at little cost for the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

Tensor = torch.Tensor
Layout = tuple[int, ...]
"""What of an engine's tensors decides which code a kernel has for them: their strides."""
_ALIGNED = 16
"""Bytes; for a pointer that is not aligned to them Triton compiles other code."""


def layout_of(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> Layout | None:
    """Strides of the rows of q, k and v; None where one of the four does not begin at an aligned place."""
    if (q.data_ptr() | k.data_ptr() | v.data_ptr() | out.data_ptr()) % _ALIGNED:
        return None
    return q.stride(0), k.stride(0), v.stride(0)


class Kernel:
    """A Triton kernel and its meta-parameters.

    Triton looks at every argument of every launch to find the code that it has compiled for such arguments,
    and that takes longer than the launch. Here it looks once for each layout, and the code is kept: whatever
    else it is chosen by is the same in all launches of one of these.
    """

    def __init__(self, function: Any, meta: Mapping[str, Any]) -> None:
        """`meta` has the constants of the kernel, which are its last parameters, and how it is launched."""
        self._function = function
        self._meta = dict(meta)
        self._constants = tuple(meta[name] for name in function.arg_names if name in meta)
        self._compiled: dict[Layout, Any] = {}

    def launch(self, grid: tuple[int, int, int], layout: Layout | None, *given: Any) -> None:
        """Launch it on the current stream with the arguments `given`, before the constants.

        Of launches with equal layouts, other than None, the tensors given must have the same dtypes and begin
        at aligned places, and the numbers that the kernel is specialised for must be the same.
        """
        compiled = None if layout is None else self._compiled.get(layout)
        if compiled is not None:
            compiled[grid](*given, *self._constants)
            return
        compiled = self._function[grid](*given, **self._meta)
        if layout is not None and compiled is not None:  # Triton's interpreter compiles nothing
            self._compiled[layout] = compiled
