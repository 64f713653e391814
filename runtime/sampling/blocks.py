"""Loops over one block of logits, in lanes: its maximum, its mass, its masses above several bounds.

The mass of logits is the sum of 2^((logit - top) * scale) over them. It is added up in one fixed order, so
that a row has the same bits whatever runs beside it. These are numba intrinsics, see
`cleave.kvcache.backends.cpu_tiles`: arrays are flat float32, places in them are element indices.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from cleave.lanes import LANES, Code

BLOCK = 256
"""Logits of a block."""

BOUNDS = 8
"""Bounds that `block_split` takes at once."""

FEW_BOUNDS = 3
"""Bounds that `block_split_few` takes."""

_UNDER_WAY = 4
"""Groups of 16 that a loop has under way, to hide the latency of its operations."""

_LENGTH = ir.Constant(ir.IntType(64), BLOCK)


@intrinsic  # type: ignore[untyped-decorator]
def block_peak(typing: Any, values: Any, at: Any) -> Any:
    """The largest of values[at : at + BLOCK]; NaN where one of them is."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = Code(context, builder, signature.args)
        values, at = code.pointers(arguments)
        lanes = code.lanes
        peaks = [code.variable(lanes.constant(-math.inf)) for _ in range(_UNDER_WAY)]
        odd = [code.variable(lanes.not_numbers(lanes.constant(0.0))) for _ in range(_UNDER_WAY)]
        with code.strides(_LENGTH, LANES * _UNDER_WAY) as (first, _):
            for group in range(_UNDER_WAY):
                value = lanes.load(values, code.plus(at, first, group * LANES))
                code.update(peaks[group], partial(lanes.maximum, value))
                code.update(odd[group], partial(builder.or_, lanes.not_numbers(value)))
        peak = builder.load(peaks[0])
        unknown = builder.load(odd[0])
        for group in range(1, _UNDER_WAY):
            peak = lanes.maximum(peak, builder.load(peaks[group]))
            unknown = builder.or_(unknown, builder.load(odd[group]))
        number = lanes.choose(unknown, lanes.constant(math.nan), lanes.constant(0.0))
        return builder.fadd(lanes.first(lanes.largest(peak)), lanes.first(lanes.total(number)))

    return types.float32(values, at), generate


@intrinsic  # type: ignore[untyped-decorator]
def block_mass(typing: Any, values: Any, at: Any, top: Any, scale: Any, bound: Any) -> Any:
    """The mass of those of values[at : at + BLOCK] that are at least `bound`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = Code(context, builder, signature.args)
        values, at, top, scale, bound = code.pointers(arguments)
        lanes = code.lanes
        top, scale, bound = lanes.splat(top), lanes.splat(scale), lanes.splat(bound)
        sums = [code.variable(lanes.constant(0.0)) for _ in range(_UNDER_WAY)]
        with code.strides(_LENGTH, LANES * _UNDER_WAY) as (first, _):
            for group in range(_UNDER_WAY):
                value = lanes.load(values, code.plus(at, first, group * LANES))
                code.update(sums[group], partial(lanes.add, _weight(code, value, top, scale, bound)))
        total = builder.load(sums[0])
        for group in range(1, _UNDER_WAY):
            total = lanes.add(total, builder.load(sums[group]))
        return lanes.first(lanes.total(total))

    return types.float32(values, at, top, scale, bound), generate


@intrinsic  # type: ignore[untyped-decorator]
def block_weights(
    typing: Any, values: Any, at: Any, top: Any, scale: Any, bound: Any, out: Any
) -> Any:  # fmt: skip
    """out[:BLOCK] = what each of values[at : at + BLOCK] adds to the mass; 0 below `bound`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = Code(context, builder, signature.args)
        values, at, top, scale, bound, out = code.pointers(arguments)
        lanes = code.lanes
        top, scale, bound = lanes.splat(top), lanes.splat(scale), lanes.splat(bound)
        with code.strides(_LENGTH, LANES) as (first, _):
            value = lanes.load(values, code.plus(at, first))
            lanes.store(_weight(code, value, top, scale, bound), out, first)
        return context.get_dummy_value()

    return types.void(values, at, top, scale, bound, out), generate


def _split(count: int, *kinds: Any) -> Any:
    """Type and code of `block_split` for `count` bounds."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = Code(context, builder, signature.args)
        values, at, top, scale, bounds, sums = code.pointers(arguments)
        lanes = code.lanes
        top, scale = lanes.splat(top), lanes.splat(scale)
        limits = [lanes.splat_from(bounds, code.plus(index)) for index in range(count)]
        totals = [code.variable(lanes.constant(0.0)) for _ in range(count)]
        with code.strides(_LENGTH, LANES) as (first, _):
            value = lanes.load(values, code.plus(at, first))
            weight = lanes.exp2(lanes.multiply(lanes.subtract(value, top), scale))
            for limit, total in zip(limits, totals, strict=True):
                part = lanes.choose(lanes.at_least(value, limit), weight, lanes.constant(0.0))
                code.update(total, partial(lanes.add, part))
        for index, total in enumerate(totals):
            whole = lanes.first(lanes.total(builder.load(total)))
            builder.store(whole, builder.gep(sums, [code.plus(index)]))
        return context.get_dummy_value()

    return types.void(*kinds), generate


@intrinsic  # type: ignore[untyped-decorator]
def block_split(typing: Any, values: Any, at: Any, top: Any, scale: Any, bounds: Any, sums: Any) -> Any:
    """sums[i] = the mass of those of values[at : at + BLOCK] that are at least bounds[i], for BOUNDS of them.

    With a scale of 0 it is their number, but for NaN where infinity is among them.
    """
    return _split(BOUNDS, values, at, top, scale, bounds, sums)


@intrinsic  # type: ignore[untyped-decorator]
def block_split_few(typing: Any, values: Any, at: Any, top: Any, scale: Any, bounds: Any, sums: Any) -> Any:
    """`block_split` for FEW_BOUNDS: what reading costs, where the sums of more would cost more."""
    return _split(FEW_BOUNDS, values, at, top, scale, bounds, sums)


@intrinsic  # type: ignore[untyped-decorator]
def block_pack(typing: Any, values: Any, at: Any, low: Any, end: Any, out: Any, out_at: Any) -> Any:
    """Copy those of values[at : at + BLOCK] with low <= value < end to out[out_at:]; gives back their number.

    `out` may be `values` where out_at <= at: what was read is overwritten.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = Code(context, builder, signature.args)
        values, at, low, end, out, out_at = code.pointers(arguments)
        lanes = code.lanes
        low, end = lanes.splat(low), lanes.splat(end)
        count = code.variable(code.plus(0))
        with code.strides(_LENGTH, LANES) as (first, _):
            value = lanes.load(values, code.plus(at, first))
            mask = lanes.both(lanes.at_least(value, low), lanes.below(value, end))
            number = lanes.pack(value, mask, out, code.plus(out_at, builder.load(count)))
            code.update(count, partial(code.plus, number))
        return builder.load(count)

    return types.int64(values, at, low, end, out, out_at), generate


@intrinsic  # type: ignore[untyped-decorator]
def block_range(typing: Any, values: Any, at: Any, out: Any) -> Any:
    """out[0], out[1] = the smallest and the largest of values[at : at + BLOCK], infinite ones left out."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = Code(context, builder, signature.args)
        values, at, out = code.pointers(arguments)
        lanes = code.lanes
        none = lanes.constant(math.inf)
        low, high = code.variable(none), code.variable(lanes.constant(-math.inf))
        with code.strides(_LENGTH, LANES) as (first, _):
            value = lanes.load(values, code.plus(at, first))
            is_finite = lanes.below(lanes.constant(-math.inf), value)
            code.update(low, partial(lanes.minimum, lanes.choose(is_finite, value, none)))
            code.update(high, partial(lanes.maximum, value))
        builder.store(lanes.first(lanes.smallest(builder.load(low))), builder.gep(out, [code.plus(0)]))
        builder.store(lanes.first(lanes.largest(builder.load(high))), builder.gep(out, [code.plus(1)]))
        return context.get_dummy_value()

    return types.void(values, at, out), generate


def _weight(code: Code, value: Any, top: Any, scale: Any, bound: Any) -> Any:
    lanes = code.lanes
    weight = lanes.exp2(lanes.multiply(lanes.subtract(value, top), scale))
    return lanes.choose(lanes.at_least(value, bound), weight, lanes.constant(0.0))
