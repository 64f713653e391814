"""A kernel that is launched again and again with arguments of the same kinds, at little cost for the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ALIGNED = 16
"""Bytes; Triton compiles other code for a pointer that is not aligned to them."""


class Kernel:
    """A Triton kernel and its meta-parameters.

    Triton looks at every argument of every launch to find the code that it has compiled for such arguments,
    which takes longer than to launch it. Here this is done once for each combination of strides, and the code
    is kept: all else that it is chosen by does not differ between the launches of one of these.
    """

    def __init__(self, function: Any, meta: Mapping[str, Any]) -> None:
        """`meta` has the constants of the kernel, which are its last parameters, and how it is launched."""
        self._function = function
        self._meta = dict(meta)
        self._constants = tuple(self._meta[name] for name in function.arg_names if name in self._meta)
        self._compiled: dict[tuple[int, ...], Any] = {}

    def launch(self, grid: tuple[int, int, int], strides: tuple[int, ...], places: int, *given: Any) -> None:
        """Launch it on the current stream with the arguments `given`, before the constants.

        Two launches with equal `strides` have to be given arguments of the same dtypes, all integers that the
        kernel is specialised for equal to those of before, and pointers of which only those differ in their
        alignment that are in `places`: the addresses of them, joined by "or".
        """
        compiled = self._compiled.get(strides) if places % _ALIGNED == 0 else None
        if compiled is not None:
            compiled[grid](*given, *self._constants)
            return
        compiled = self._function[grid](*given, **self._meta)
        if compiled is not None and places % _ALIGNED == 0:  # Triton's interpreter compiles nothing
            self._compiled[strides] = compiled
