"""Words of memory that several threads read and write at once, for compiled functions.

These are numba intrinsics: the Python function gives the type, and the function in it writes the LLVM
code. All atomic operations are sequentially consistent.
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

_ORDER = "seq_cst"
_HAS_PAUSE = platform.machine().lower() in ("x86_64", "amd64")


def _word(context: Any, builder: Any, kind: Any, words: Any, index: Any) -> Any:
    """The address of words[index]."""
    data = context.make_array(kind)(context, builder, words).data
    return builder.gep(data, [index])


@intrinsic  # type: ignore[untyped-decorator]
def load(typing: Any, words: Any, index: Any) -> Any:
    """words[index], int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_word(context, builder, signature.args[0], *arguments), _ORDER, 8)

    return types.int64(words, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def store(typing: Any, words: Any, index: Any, value: Any) -> Any:
    """words[index] = value, int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        *place, value = arguments
        builder.store_atomic(value, _word(context, builder, signature.args[0], *place), _ORDER, 8)
        return context.get_dummy_value()

    return types.void(words, types.int64, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def add(typing: Any, words: Any, index: Any, value: Any) -> Any:
    """words[index] += value; gives back what was there before."""
    return types.int64(words, types.int64, types.int64), _read_modify_write("add")


@intrinsic  # type: ignore[untyped-decorator]
def exchange(typing: Any, words: Any, index: Any, value: Any) -> Any:
    """words[index] = value; gives back what was there before."""
    return types.int64(words, types.int64, types.int64), _read_modify_write("xchg")


def _read_modify_write(operation: str) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        *place, value = arguments
        address = _word(context, builder, signature.args[0], *place)
        return builder.atomic_rmw(operation, address, value, _ORDER)

    return generate


@intrinsic  # type: ignore[untyped-decorator]
def compare_exchange(typing: Any, words: Any, index: Any, expected: Any, value: Any) -> Any:
    """words[index] = value if `expected` is there; gives back what was there before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        *place, expected, value = arguments
        address = _word(context, builder, signature.args[0], *place)
        return builder.extract_value(builder.cmpxchg(address, expected, value, _ORDER, _ORDER), 0)

    return types.int64(words, types.int64, types.int64, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def pause(typing: Any) -> Any:
    """Tell the processor that this is a loop that waits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if _HAS_PAUSE:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(builder.module.declare_intrinsic("llvm.x86.sse2.pause", (), kind), [])
        return context.get_dummy_value()

    return types.void(), generate
