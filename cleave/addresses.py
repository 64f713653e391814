"""Addresses in compiled functions: what stands there, and calls of C functions.

An address is an int64. Like `cleave.atomics` these are numba intrinsics, which nothing checks: the caller
knows what is there.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

_WORD = ir.IntType(64)


def pointer_to(kind: Any) -> Any:
    """A compiled function from an address to a pointer to this numba type, for `numba.carray`."""

    @intrinsic  # type: ignore[untyped-decorator]
    def pointer(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), generate

    return pointer


float32_at, int32_at, int64_at = pointer_to(types.float32), pointer_to(types.int32), pointer_to(types.int64)


@intrinsic  # type: ignore[untyped-decorator]
def call(typing: Any, function: Any, block: Any, part: Any, thread: Any) -> Any:
    """Call the C function `void (int64, int64, int64)` at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_WORD] * 3)
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


@intrinsic  # type: ignore[untyped-decorator]
def call_with_pointer(typing: Any, function: Any, pointer: Any) -> Any:
    """Call the C function `int (void *)` at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function, pointer = arguments
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.IntType(32), [byte])
        address = builder.inttoptr(function, kind.as_pointer())
        return builder.sext(builder.call(address, [builder.inttoptr(pointer, byte)]), _WORD)

    return types.int64(types.int64, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def call_with_five(typing: Any, function: Any, a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
    """Call the C function `int64 (int64, int64, int64, int64, int64)` at an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_WORD, [_WORD] * 5)
        return builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])

    return types.int64(*[types.int64] * 6), generate
