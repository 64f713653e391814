"""How kernels for the CPU are compiled: by numba, for one set of types, kept on disk."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numba

Function = Callable[..., Any]


def part(function: Function) -> Function:
    """A part of a `whole` function, compiled with it."""
    compiled: Function = numba.njit(function, nogil=True, error_model="numpy")
    return compiled


def whole(signature: str) -> Callable[[Function], Function]:
    """Compile for these types only, to run without the GIL, and keep the code for later processes.

    numba keeps it beside the source file or, where that is read-only, in the user's cache folder.
    """

    def compile_whole(function: Function) -> Function:
        compiled: Function
        try:
            compiled = numba.njit(signature, nogil=True, error_model="numpy", cache=True)(function)
        except RuntimeError:
            # Neither place can be written: compile in each process.
            compiled = numba.njit(signature, nogil=True, error_model="numpy")(function)
        return compiled

    return compile_whole


def callback(signature: str) -> Callable[[Function], Any]:
    """Compile a C function of these types, with its place as `address`, and keep the code likewise."""

    def compile_callback(function: Function) -> Any:
        try:
            return numba.cfunc(signature, error_model="numpy", cache=True)(function)
        except RuntimeError:
            return numba.cfunc(signature, error_model="numpy")(function)

    return compile_callback


def sources_digest(*modules: ModuleType) -> int:
    """A number that changes with the text of these modules.

    numba's cache looks at the text of one file only, that of the function. But what a function closes over
    is part of its key: one that is made from several files closes over their digest.
    """
    return zlib.crc32("".join(inspect.getsource(module) for module in modules).encode())
