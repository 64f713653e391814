"""Sixteen float32 lanes as one value, for kernels on the CPU.

Python's compilers vectorise where they please, and a sum that is vectorised differently has other
bits. Here every operation is written out as LLVM vector code: each lane is an IEEE operation of its
own, so the bits are the same for AVX2, AVX-512 or no vector unit, and only the speed differs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils

LANES = 16

_FLOAT = ir.FloatType()
_FLOATS = ir.VectorType(_FLOAT, LANES)
_INT = ir.IntType(32)
_INTS = ir.VectorType(_INT, LANES)
_WIDE = ir.IntType(64)

# 1.5 * 2^23: adding it rounds a float32 below 2^22 to an integer, which then stands in the low bits.
_ROUND = 12582912.0
_ONE_BITS = 0x3F800000
_MANTISSA_BITS = 23

# (2^f - 1) / f on [-0.5, 0.5], lowest power first; minimax fit of the relative error of 2^f.
_EXP2 = (0.693147182, 0.240226477, 0.0555033237, 0.00961843692, 0.00133988739, 0.00015353362)
# (tanh(x) / x - 1) / x^2 in x^2 on [-0.6, 0.6]; minimax fit of the relative error of tanh.
_TANH = (-0.333332986, 0.133319244, -0.0537838303, 0.0207959749, -0.00589516154)
_TANH_LIMIT = 0.6
_TWO_LOG2_E = 2.8853900817779268


class Lanes:
    """Emits operations on sixteen lanes at the builder's current place."""

    def __init__(self, builder: Any) -> None:
        self._builder = builder

    def constant(self, value: float) -> Any:
        """The number in every lane, rounded to float32."""
        return ir.Constant(_FLOATS, [value] * LANES)

    def load(self, pointer: Any, index: Any) -> Any:
        """Lanes from pointer[index : index + 16]."""
        return self._builder.load(self._vector_at(pointer, index), align=4)

    def store(self, lanes: Any, pointer: Any, index: Any) -> None:
        """Lanes to pointer[index : index + 16]."""
        self._builder.store(lanes, self._vector_at(pointer, index), align=4)

    def prefetch(self, pointer: Any, index: Any, *, level: int = 1) -> None:
        """Ask for the cache line of pointer[index], which need not be valid, into the cache of this level."""
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, _INT, _INT, _INT])
        fetch = self._builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        address = self._builder.bitcast(self._builder.gep(pointer, [index]), byte)
        self._builder.call(fetch, [address, _INT(0), _INT(4 - level), _INT(1)])

    def splat_from(self, pointer: Any, index: Any) -> Any:
        """pointer[index] in every lane."""
        return self.splat(self._builder.load(self._builder.gep(pointer, [index]), align=4))

    def splat(self, scalar: Any) -> Any:
        """A float32 or int32 scalar in every lane."""
        kind = _FLOATS if scalar.type == _FLOAT else _INTS
        zero = ir.Constant(_INT, 0)
        first = self._builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, zero)
        return self._builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), ir.Constant(_INTS, None))

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c, rounded once."""
        kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
        fma = self._builder.module.declare_intrinsic(f"llvm.fma.v{LANES}f32", (), kind)
        return self._builder.call(fma, [a, b, c])

    def add(self, a: Any, b: Any) -> Any:
        """a + b."""
        return self._builder.fadd(a, b)

    def subtract(self, a: Any, b: Any) -> Any:
        """a - b."""
        return self._builder.fsub(a, b)

    def multiply(self, a: Any, b: Any) -> Any:
        """a * b."""
        return self._builder.fmul(a, b)

    def maximum(self, a: Any, b: Any) -> Any:
        """The larger; b where one is not a number."""
        return self._builder.select(self._builder.fcmp_ordered(">", a, b), a, b)

    def largest(self, lanes: Any) -> Any:
        """The largest lane, in every lane."""
        for distance in (8, 4, 2, 1):
            order = ir.Constant(_INTS, [lane ^ distance for lane in range(LANES)])
            swapped = self._builder.shuffle_vector(lanes, ir.Constant(_FLOATS, ir.Undefined), order)
            lanes = self.maximum(lanes, swapped)
        return lanes

    def total(self, lanes: Any) -> Any:
        """The sum of all lanes, in every lane; pairs at a distance of 8 first, then of 4, 2, 1."""
        for distance in (8, 4, 2, 1):
            order = ir.Constant(_INTS, [lane ^ distance for lane in range(LANES)])
            swapped = self._builder.shuffle_vector(lanes, ir.Constant(_FLOATS, ir.Undefined), order)
            lanes = self.add(lanes, swapped)
        return lanes

    def first(self, lanes: Any) -> Any:
        """Lane 0 as a float32."""
        return self._builder.extract_element(lanes, ir.Constant(_INT, 0))

    def at_least(self, a: Any, b: Any) -> Any:
        """Which lanes have a >= b; not those where one is not a number."""
        return self._builder.fcmp_ordered(">=", a, b)

    def not_numbers(self, lanes: Any) -> Any:
        """Which lanes are NaN."""
        return self._builder.fcmp_unordered("uno", lanes, lanes)

    def minimum(self, a: Any, b: Any) -> Any:
        """The smaller; b where one is not a number."""
        return self._builder.select(self._builder.fcmp_ordered("<", a, b), a, b)

    def smallest(self, lanes: Any) -> Any:
        """The smallest lane, in every lane."""
        zero = self.constant(0.0)
        return self.subtract(zero, self.largest(self.subtract(zero, lanes)))

    def below(self, a: Any, b: Any) -> Any:
        """Which lanes have a < b; not those where one is not a number."""
        return self._builder.fcmp_ordered("<", a, b)

    def both(self, one: Any, other: Any) -> Any:
        """The lanes of two masks."""
        return self._builder.and_(one, other)

    def pack(self, lanes: Any, mask: Any, pointer: Any, index: Any) -> Any:
        """Store the lanes of the mask side by side from pointer[index] on; gives back their number, int64."""
        flags = mask.type
        kind = ir.FunctionType(ir.VoidType(), [_FLOATS, _FLOAT.as_pointer(), flags])
        store = self._builder.module.declare_intrinsic(f"llvm.masked.compressstore.v{LANES}f32", (), kind)
        self._builder.call(store, [lanes, self._builder.gep(pointer, [index]), mask])
        bits = self._builder.bitcast(mask, ir.IntType(LANES))
        return self._builder.zext(self._builder.ctpop(bits), _WIDE)

    def between(self, low: Any, high: Any, first: Any) -> Any:
        """Which lanes have low <= first + lane < high; three int64 that fit in int32."""
        low, high, first = (self._builder.trunc(value, _INT) for value in (low, high, first))
        numbers = self._builder.add(self.splat(first), ir.Constant(_INTS, list(range(LANES))))
        above = self._builder.icmp_signed(">=", numbers, self.splat(low))
        below = self._builder.icmp_signed("<", numbers, self.splat(high))
        return self._builder.and_(above, below)

    def choose(self, mask: Any, yes: Any, no: Any) -> Any:
        """`yes` in the lanes of the mask, `no` elsewhere."""
        return self._builder.select(mask, yes, no)

    def exp2(self, x: Any) -> Any:
        """2^x for x <= 0 within 1.5 ulp; 1 for 0, and 0 where the result would be below 2^-126."""
        floor = self.constant(-127.0)
        x = self._builder.select(self._builder.fcmp_ordered("<", x, floor), floor, x)
        shifted = self.add(x, self.constant(_ROUND))
        fraction = self.subtract(x, self.subtract(shifted, self.constant(_ROUND)))
        power = self.multiply_add(self._polynomial(_EXP2, fraction), fraction, self.constant(1.0))
        exponent = self._builder.shl(self._builder.bitcast(shifted, _INTS), self._integers(_MANTISSA_BITS))
        scale = self._builder.bitcast(self._builder.add(exponent, self._integers(_ONE_BITS)), _FLOATS)
        return self.multiply(power, scale)

    def tanh(self, x: Any) -> Any:
        """tanh(x) within 3 ulp: a polynomial about 0, (1 - e) / (1 + e) with e = exp(-2|x|) elsewhere."""
        size = self.maximum(x, self.subtract(self.constant(0.0), x))
        square = self.multiply(x, x)
        small = self.multiply_add(self.multiply(self._polynomial(_TANH, square), square), size, size)
        decay = self.exp2(self.multiply(size, self.constant(-_TWO_LOG2_E)))
        one = self.constant(1.0)
        large = self._builder.fdiv(self.subtract(one, decay), self.add(one, decay))
        is_small = self._builder.fcmp_ordered("<", size, self.constant(_TANH_LIMIT))
        positive = self._builder.select(is_small, small, large)
        is_negative = self._builder.fcmp_ordered("<", x, self.constant(0.0))
        return self._builder.select(is_negative, self.subtract(self.constant(0.0), positive), positive)

    def _polynomial(self, coefficients: tuple[float, ...], x: Any) -> Any:
        total = self.constant(coefficients[-1])
        for coefficient in coefficients[-2::-1]:
            total = self.multiply_add(total, x, self.constant(coefficient))
        return total

    def _integers(self, value: int) -> Any:
        return ir.Constant(_INTS, [value] * LANES)

    def _vector_at(self, pointer: Any, index: Any) -> Any:
        return self._builder.bitcast(self._builder.gep(pointer, [index]), _FLOATS.as_pointer())


class Code:
    """What writing an intrinsic needs: the builder, sixteen lanes, and int64 arithmetic."""

    def __init__(self, context: Any, builder: Any, kinds: Any) -> None:
        self.builder = builder
        self.lanes = Lanes(builder)
        self._context = context
        self._kinds = kinds

    def pointers(self, arguments: Any) -> list[Any]:
        """The arguments, arrays as pointers to their first element."""
        return [
            self._context.make_array(kind)(self._context, self.builder, value).data
            if isinstance(kind, types.Array)
            else value
            for kind, value in zip(self._kinds, arguments, strict=True)
        ]

    def plus(self, *terms: Any) -> Any:
        """The sum of int64 values and Python ints."""
        total: Any = _WIDE(0)
        for term in terms:
            total = self.builder.add(total, _WIDE(term) if isinstance(term, int) else term)
        return total

    def times(self, value: Any, factor: Any) -> Any:
        """value * factor, int64."""
        return self.builder.mul(value, _WIDE(factor) if isinstance(factor, int) else factor)

    def item(self, pointer: Any, *index: Any) -> Any:
        """pointer[sum of index]."""
        return self.builder.load(self.builder.gep(pointer, [self.plus(*index)]))

    def variable(self, value: Any) -> Any:
        """A place on the stack that holds `value` at first."""
        return cgutils.alloca_once_value(self.builder, value)

    def update(self, variable: Any, function: Callable[[Any], Any]) -> None:
        """variable = function(variable)."""
        self.builder.store(function(self.builder.load(variable)), variable)

    def loop(self, end: Any, start: Any = None) -> Any:
        """for index in range(start, end); a context manager."""
        return cgutils.for_range(self.builder, end, start=start)

    def strides(self, end: Any, step: int, start: Any = None) -> Any:
        """for index in range(start, end, step); a context manager."""
        begin = _WIDE(0) if start is None else start
        return cgutils.for_range_slice(self.builder, begin, end, _WIDE(step), _WIDE)

    def when_equal(self, value: Any, number: int) -> Any:
        """if value == number; a context manager."""
        return self.builder.if_then(self.builder.icmp_signed("==", value, _WIDE(number)))
