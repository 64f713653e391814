"""The inner loops of attention on the CPU: scores, softmax and values of a few query rows.

How many rows and columns a loop holds in registers changes its speed only: each element is summed
in one fixed order, over dimensions for a score, over keys for an output.

These are numba intrinsics: the Python function gives the type, and the function in it writes the LLVM
code. Arrays are flat; every place in them is an element index, int64.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from cleave.lanes import LANES, Code

# The largest negative float32: the maximum of no scores. Infinity would give inf - inf.
LOWEST = -3.4028234663852886e38

# How many groups of 16 columns a loop holds for each number of rows. Sums, columns and one number of
# the row must fit in the registers, and about eight sums must be under way to hide the latency of a
# multiply-add. AVX-512 has registers of 16 floats, 32 of them; AVX2 has 16 of 8.
_HAS_AVX512 = bool(binding.get_host_cpu_features().get("avx512f", False))
VECTORS = "vectors of 16 floats (AVX-512)" if _HAS_AVX512 else "vectors of 8 floats or fewer"
"""What the loops are made for, for people."""
_SCORE_COLUMNS = {1: 4, 2: 4, 3: 4, 4: 2, 5: 2, 6: 2} if _HAS_AVX512 else {1: 4, 2: 2, 3: 1, 4: 1, 5: 1, 6: 1}
_VALUE_COLUMNS = {1: 4, 2: 4, 3: 4, 4: 2, 5: 2, 6: 2} if _HAS_AVX512 else {1: 4, 2: 2, 3: 2, 4: 1, 5: 1, 6: 1}

HEIGHT = max(_SCORE_COLUMNS)
"""The most rows that the loops take at once."""

REACH = 2 * max(_SCORE_COLUMNS.values())
"""Score loops look up the place of this many groups from their own on, the last of them to prefetch."""

_INT = ir.IntType(64)


@intrinsic  # type: ignore[untyped-decorator]
def tile_scores(
    typing: Any, rows: Any, q: Any, q_at: Any, dim: Any, keys: Any, groups: Any, count: Any, scores: Any,
    scores_at: Any, stride: Any, values: Any, width: Any,
) -> Any:  # fmt: skip
    """scores[row, key] = sum over d of q[row, d] * key[d], for at most HEIGHT rows.

    Row r of q is at q_at + r * dim. Keys come in `count` groups of 16: group g is [dim, 16] at
    groups[g] * 16 * dim in `keys`, its scores go to scores_at + r * stride + 16 * g. Scores of up to
    three groups more are written, of those that `groups` names next. The values of the same keys, in groups
    of [16, width], are fetched meanwhile: both streams together use more of the memory's bandwidth.
    """
    signature = types.void(rows, q, q_at, dim, keys, groups, count, scores, scores_at, stride, values, width)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = Code(context, builder, signature.args)
        rows, count = arguments[0], arguments[6]
        for height, columns in _SCORE_COLUMNS.items():
            with code.when_equal(rows, height), code.strides(count, columns) as (group, _):
                _scores(code, arguments, height, columns, group)
        return context.get_dummy_value()

    return signature, generate


def _scores(code: Code, arguments: Any, height: int, columns: int, group: Any) -> None:
    _, q, q_at, dim, keys, groups, _, scores, scores_at, stride, values, width = code.pointers(arguments)
    lanes, plus, times = code.lanes, code.plus, code.times
    size = times(dim, LANES)
    places = [times(code.item(groups, group, c), size) for c in range(2 * columns)]
    value_places = [times(code.item(groups, group, c), times(width, LANES)) for c in range(columns)]
    queries = [plus(q_at, times(dim, r)) for r in range(height)]
    sums = [[code.variable(lanes.constant(0.0)) for _ in range(columns)] for _ in range(height)]
    with code.loop(dim) as d:
        line = times(d.index, LANES)
        key = [lanes.load(keys, plus(place, line)) for place in places[:columns]]
        for place in places[columns:]:
            lanes.prefetch(keys, plus(place, line))
        for place in value_places:
            lanes.prefetch(values, plus(place, line), level=2)
        for r in range(height):
            query = lanes.splat_from(q, plus(queries[r], d.index))
            for c in range(columns):
                code.update(sums[r][c], partial(lanes.multiply_add, query, key[c]))
    for r in range(height):
        for c in range(columns):
            target = plus(scores_at, times(stride, r), times(group, LANES), c * LANES)
            lanes.store(code.builder.load(sums[r][c]), scores, target)


@intrinsic  # type: ignore[untyped-decorator]
def tile_values(
    typing: Any, rows: Any, weights: Any, weights_at: Any, stride: Any, values: Any, groups: Any, count: Any,
    width: Any, out: Any, out_at: Any, decay: Any, decay_at: Any,
) -> Any:  # fmt: skip
    """out[row] = out[row] * decay[row] + sum over keys of weights[row, key] * value[key].

    For at most HEIGHT rows, `count` keys and `width` dimensions, a multiple of 16. Value group g is
    [16, width] at groups[g] * 16 * width in `values`; weights of row r are at weights_at + r * stride,
    its output at out_at + r * width.
    """
    signature = types.void(
        rows, weights, weights_at, stride, values, groups, count, width, out, out_at, decay, decay_at
    )

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = Code(context, builder, signature.args)
        rows, width = arguments[0], arguments[7]
        for height, columns in _VALUE_COLUMNS.items():
            with code.when_equal(rows, height):
                step = columns * LANES
                whole = code.times(builder.sdiv(width, _INT(step)), step)
                with code.strides(whole, step) as (column, _):
                    _values(code, arguments, height, columns, column)
                if columns > 1:
                    with code.strides(width, LANES, start=whole) as (column, _):
                        _values(code, arguments, height, 1, column)
        return context.get_dummy_value()

    return signature, generate


def _values(code: Code, arguments: Any, height: int, columns: int, column: Any) -> None:
    (_, weights, weights_at, stride, values, groups, count, width, out, out_at, decay, decay_at) = (
        code.pointers(arguments)
    )
    builder, lanes, plus, times = code.builder, code.lanes, code.plus, code.times
    size = times(width, LANES)
    outputs = [plus(out_at, times(width, r), column) for r in range(height)]
    sums = []
    for r in range(height):
        factor = lanes.splat_from(decay, plus(decay_at, r))
        before = [lanes.load(out, plus(outputs[r], c * LANES)) for c in range(columns)]
        sums.append([code.variable(lanes.multiply(part, factor)) for part in before])
    with code.strides(count, LANES) as (first, group):
        here = plus(times(code.item(groups, group), size), column)
        ahead = plus(times(code.item(groups, group, 1), size), column)
        left = builder.sub(count, first)
        keys = builder.select(builder.icmp_signed("<", left, _INT(LANES)), left, _INT(LANES))
        with code.loop(keys) as key:
            line = times(width, key.index)
            value = [lanes.load(values, plus(here, line, c * LANES)) for c in range(columns)]
            for c in range(columns):
                lanes.prefetch(values, plus(ahead, line, c * LANES))
            for r in range(height):
                place = plus(weights_at, times(stride, r), first, key.index)
                weight = lanes.splat_from(weights, place)
                for c in range(columns):
                    code.update(sums[r][c], partial(lanes.multiply_add, weight, value[c]))
    for r in range(height):
        for c in range(columns):
            lanes.store(builder.load(sums[r][c]), out, plus(outputs[r], c * LANES))


@intrinsic  # type: ignore[untyped-decorator]
def row_softmax(
    typing: Any, scores: Any, scores_at: Any, groups: Any, low: Any, high: Any, state: Any, state_at: Any,
    decay: Any, decay_at: Any,
) -> Any:  # fmt: skip
    """One block of the online softmax of one row (Milakov and Gimelshein 2018, arXiv:1805.02867), base 2.

    Replaces `groups` times 16 scores by weights 2^(score - maximum), 0 outside keys [low, high) of the
    block. `state` holds the row's maximum in 16 lanes and then its sum in 16 lanes; `decay` becomes
    what the row's earlier sums are multiplied by.
    """
    signature = types.void(scores, scores_at, groups, low, high, state, state_at, decay, decay_at)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = Code(context, builder, signature.args)
        scores, scores_at, groups, low, high, state, state_at, decay, decay_at = code.pointers(arguments)
        lanes, plus = code.lanes, code.plus
        hide = partial(_hide, code, scores, scores_at, low, high)
        with code.loop(builder.sdiv(plus(low, LANES - 1), _INT(LANES))) as group:
            hide(group.index)
        with code.loop(groups, start=builder.sdiv(high, _INT(LANES))) as group:
            hide(group.index)

        sum_at = plus(state_at, LANES)
        before = lanes.load(state, state_at)
        largest = code.variable(before)
        with code.strides(code.times(groups, LANES), LANES) as (first, _):
            code.update(largest, partial(lanes.maximum, lanes.load(scores, plus(scores_at, first))))
        maximum = lanes.largest(builder.load(largest))
        factor = lanes.exp2(lanes.subtract(before, maximum))
        total = code.variable(lanes.multiply(lanes.load(state, sum_at), factor))
        with code.strides(code.times(groups, LANES), LANES) as (first, _):
            here = plus(scores_at, first)
            weight = lanes.exp2(lanes.subtract(lanes.load(scores, here), maximum))
            lanes.store(weight, scores, here)
            code.update(total, partial(lanes.add, weight))
        lanes.store(maximum, state, state_at)
        lanes.store(builder.load(total), state, sum_at)
        scalar = builder.extract_element(factor, ir.Constant(ir.IntType(32), 0))
        builder.store(scalar, builder.gep(decay, [decay_at]))
        return context.get_dummy_value()

    return signature, generate


def _hide(code: Code, scores: Any, scores_at: Any, low: Any, high: Any, group: Any) -> None:
    """Minus infinity for the scores of a group outside keys [low, high).

    Chosen, not added: what stands there may be a key of nobody, and not a number.
    """
    lanes, first = code.lanes, code.times(group, LANES)
    here = code.plus(scores_at, first)
    seen = lanes.between(low, high, first)
    lanes.store(lanes.choose(seen, lanes.load(scores, here), lanes.constant(-math.inf)), scores, here)


@intrinsic  # type: ignore[untyped-decorator]
def row_softcap(typing: Any, scores: Any, scores_at: Any, groups: Any, cap: Any) -> Any:
    """score = cap * tanh(score) for `groups` times 16 scores."""
    signature = types.void(scores, scores_at, groups, cap)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        code = Code(context, builder, signature.args)
        scores, scores_at, groups, cap = code.pointers(arguments)
        lanes = code.lanes
        factor = lanes.splat(cap)
        with code.strides(code.times(groups, LANES), LANES) as (first, _):
            here = code.plus(scores_at, first)
            lanes.store(lanes.multiply(lanes.tanh(lanes.load(scores, here)), factor), scores, here)
        return context.get_dummy_value()

    return signature, generate
