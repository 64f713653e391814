"""Kernels that find the least logit that top-k and top-p keep, as `cleave.runtime.sampling.bounds`.

The edge is a value of the row: the smallest with less than is wanted strictly above it, counted or weighed.
Where only top-p is asked for, the masses above some bounds, and then above some bounds between two of those,
say where it lies; top-k has a lower bound in the block maxima. What can be the edge is gathered in a list,
and one program for each row finds it there. The list has no order, so it is weighed in whole numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from cleave.runtime.sampling.device.draw_kernels import is_filtered, least_of, source_of, top_of
from cleave.runtime.sampling.device.fields import (
    BLOCK,
    BLOCKS,
    DEPTH,
    SCALE,
    TOP_K,
    TOP_P,
    WIDTH,
)
from cleave.runtime.sampling.device.weights import weight

BOUNDS = tl.constexpr(16)
"""Bounds that are taken at once."""
UNIT = tl.constexpr(2.0**42)
"""What a weight of 1 is in whole numbers: 2^20 of them fit into 63 bits."""


@triton.jit
def load_from(source, row_peaks, first_block, blocks, vocab, least):
    """[BLOCKS, BLOCK] logits; minus infinity, and not read, in blocks that have none from `least` on."""
    block = first_block + tl.arange(0, BLOCKS)
    peak = tl.load(row_peaks + block, mask=block < blocks, other=float("-inf"))
    token = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    return tl.load(source + token, mask=(token < vocab) & (peak >= least)[:, None], other=float("-inf"))


@triton.jit
def spread(low, high, index, parts):
    """low, high and what lies between them at equal distances, float32."""
    wide = low.to(tl.float64)
    return (wide + (high.to(tl.float64) - wide) * index / parts).to(tl.float32)


@triton.jit
def narrowed(bounds, above, wanted, first, last, base):
    """The part of [first, last) between two bounds that has the edge, and the mass above that part.

    bounds [BOUNDS] float32, above [BOUNDS] float64: the mass from each on.
    """
    has_all = above >= wanted
    low = tl.maximum(first, tl.max(tl.where(has_all, bounds, float("-inf")), 0))
    high = tl.minimum(last, tl.min(tl.where(has_all, float("inf"), bounds), 0))
    rest = tl.maximum(base, tl.max(tl.where(has_all, 0.0, above), 0))
    return low, high, rest


@triton.jit
def sum_of(parts, row, programs, PROGRAMS: tl.constexpr):
    """[BOUNDS] float64: the sums of parts [rows, programs, BOUNDS] over the programs of a row."""
    program = tl.arange(0, PROGRAMS)[:, None]
    at = (row * programs + program) * BOUNDS + tl.arange(0, BOUNDS)[None, :]
    return tl.sum(tl.load(parts + at, mask=program < programs, other=0.0).to(tl.float64), 0)


@triton.jit
def coarse_range(top, row_reals):
    """The least logit that weighs, and where the edge must be: from the second of these on."""
    least = least_of(top, row_reals)
    floor = (top.to(tl.float64) - tl.load(row_reals + DEPTH)).to(tl.float32)
    return least, tl.maximum(least, floor)


@triton.jit
def coarse_bound(least, floor, top, index):
    """Bounds of the first round: the least logit, then equal parts up to the largest."""
    return tl.where(index == 0, least, spread(floor, top, index, BOUNDS - 1))


@triton.jit
def coarse_part(coarse, row, row_reals, top, programs, PROGRAMS: tl.constexpr):
    """What is wanted, and where the first round says the edge lies: first, last, the mass from last on."""
    least, floor = coarse_range(top, row_reals)
    bounds = coarse_bound(least, floor, top, tl.arange(0, BOUNDS))
    above = sum_of(coarse, row, programs, PROGRAMS)
    wanted = tl.load(row_reals + TOP_P) * tl.max(above, 0)
    zero = tl.full([], 0.0, tl.float64)
    first, last, base = narrowed(bounds, above, wanted, least, float("inf"), zero)
    return wanted, first, last, base


@triton.jit
def fine_bound(first, last, top, index):
    """Bounds of the second round, all inside of [first, last]."""
    return spread(first, tl.minimum(last, top), index + 1, BOUNDS + 1)


@triton.jit
def fine_part(coarse, fine, row, row_reals, top, programs, PROGRAMS: tl.constexpr):
    """As `coarse_part`, after the second round."""
    wanted, first, last, base = coarse_part(coarse, row, row_reals, top, programs, PROGRAMS)
    above = sum_of(fine, row, programs, PROGRAMS)
    bounds = fine_bound(first, last, top, tl.arange(0, BOUNDS))
    first, last, base = narrowed(bounds, above, wanted, first, last, base)
    return wanted, first, last, base


@triton.jit
def bounds_kernel(
    logits, logits_stride, edited, peaks, coarse, fine, ints, reals, vocab, blocks, programs,
    IS_FINE: tl.constexpr, SIZE: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """coarse or fine [rows, programs, BOUNDS] = the mass from each bound on, of rows that have only top-p.

    One program for BLOCKS blocks of a row.
    """
    row = tl.program_id(0).to(tl.int64)
    row_ints, row_reals = ints + row * WIDTH, reals + row * WIDTH
    if (tl.load(row_ints + TOP_K) == 0) & (tl.load(row_reals + TOP_P) < 1.0):
        source = source_of(logits, logits_stride, edited, vocab, row, row_ints)
        scale = tl.load(row_reals + SCALE).to(tl.float32)
        top = top_of(peaks, row, blocks, SIZE)
        least, floor = coarse_range(top, row_reals)
        first, last = least, top
        sums = coarse
        if IS_FINE:
            _, first, last, _ = coarse_part(coarse, row, row_reals, top, programs, PROGRAMS)
            least = fine_bound(first, last, top, 0)
            sums = fine
        sums += (row * programs + tl.program_id(1)) * BOUNDS
        value = load_from(source, peaks + row * blocks, tl.program_id(1) * BLOCKS, blocks, vocab, least)
        part = weight(value, top, scale, least)
        for index in tl.static_range(BOUNDS):
            bound = fine_bound(first, last, top, index) if IS_FINE else coarse_bound(least, floor, top, index)
            tl.store(sums + index, tl.sum(tl.sum(tl.where(value >= bound, part, 0.0), 1), 0))


@triton.jit
def peak_bound(peaks, row, blocks, count, SIZE: tl.constexpr):
    """A value that at least `count` block maxima reach; minus infinity where there are fewer."""
    block = tl.arange(0, SIZE)
    peak = tl.load(peaks + row * blocks + block, mask=block < blocks, other=float("-inf"))
    is_finite = peak > float("-inf")
    low = tl.min(tl.where(is_finite, peak, float("inf")), 0)
    high = tl.max(peak, 0)
    result = low
    for _ in range(2):
        bounds = spread(low, high, tl.arange(0, BOUNDS), BOUNDS)
        reached = tl.sum((peak[:, None] >= bounds[None, :]).to(tl.int32), 0)
        is_enough = reached >= count
        result = tl.maximum(low, tl.max(tl.where(is_enough, bounds, float("-inf")), 0))
        high = tl.minimum(high, tl.min(tl.where(is_enough, float("inf"), bounds), 0))
        low = result
    return tl.where(tl.sum(is_finite.to(tl.int32), 0) >= count, result, float("-inf"))


@triton.jit
def aim_kernel(peaks, cuts, ints, reals, blocks, SIZE: tl.constexpr):
    """cuts [rows] = a bound that the edge of top-k is not below; one program a row."""
    row = tl.program_id(0).to(tl.int64)
    row_ints, row_reals = ints + row * WIDTH, reals + row * WIDTH
    top_k = tl.load(row_ints + TOP_K)
    if top_k > 0:
        top = top_of(peaks, row, blocks, SIZE)
        bound = peak_bound(peaks, row, blocks, top_k, SIZE)
        tl.store(cuts + row, tl.maximum(least_of(top, row_reals), bound))


@triton.jit
def gather_kernel(
    logits, logits_stride, edited, peaks, coarse, fine, cuts, found, listed, ints, reals, vocab, blocks,
    programs,
    SIZE: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """listed [rows, vocab] = the logits among which the edge is, found [rows] = how many they are.

    One program for BLOCKS blocks of a row.
    """
    row = tl.program_id(0).to(tl.int64)
    row_ints, row_reals = ints + row * WIDTH, reals + row * WIDTH
    if is_filtered(row_ints, row_reals):
        source = source_of(logits, logits_stride, edited, vocab, row, row_ints)
        last = tl.full([], float("inf"), tl.float32)
        if tl.load(row_ints + TOP_K) > 0:
            first = tl.load(cuts + row)
        else:
            top = top_of(peaks, row, blocks, SIZE)
            _, first, last, _ = fine_part(coarse, fine, row, row_reals, top, programs, PROGRAMS)
        value = load_from(source, peaks + row * blocks, tl.program_id(1) * BLOCKS, blocks, vocab, first)
        is_in = (value >= first) & (value < last) & (value > float("-inf"))
        places = found + row + tl.zeros([BLOCKS, BLOCK], tl.int32)
        place = tl.atomic_add(places, 1, mask=is_in, sem="relaxed")
        tl.store(listed + row * vocab + place, value, mask=is_in)


@triton.jit
def list_weights(listed, start, number, top, scale, low, high, IS_MASS: tl.constexpr, SIZE: tl.constexpr):
    """SIZE numbers of a list, and their weights from `low` to `high` in whole numbers; 1 without IS_MASS."""
    index = start + tl.arange(0, SIZE)
    value = tl.load(listed + index, mask=index < number, other=float("-inf"))
    is_in = (index < number) & (value >= low) & (value <= high)
    if IS_MASS:
        whole = (weight(value, top, scale, low).to(tl.float64) * UNIT).to(tl.int64)
    else:
        whole = tl.full([SIZE], 1, tl.int64)
    return value, tl.where(is_in, whole, 0)


@triton.jit
def list_range(listed, number, first, last, most, SIZE: tl.constexpr):
    """The smallest and the largest number of a list from `first` to below `last`, and up to `most`."""
    low = tl.full([SIZE], float("inf"), tl.float32)
    high = tl.full([SIZE], float("-inf"), tl.float32)
    for start in range(0, number, SIZE):
        index = start + tl.arange(0, SIZE)
        value = tl.load(listed + index, mask=index < number, other=float("-inf"))
        is_in = (index < number) & (value >= first) & (value < last) & (value <= most)
        low = tl.minimum(low, tl.where(is_in, value, float("inf")))
        high = tl.maximum(high, tl.where(is_in, value, float("-inf")))
    return tl.min(low, 0), tl.max(high, 0)


@triton.jit
def edge_of(
    listed, number, base, wanted, top, scale, first, last, IS_MASS: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    """The smallest value of a list with less than `wanted` above it, `base` of it above the list."""
    unit = 1.0 / UNIT if IS_MASS else 1.0
    low, high = list_range(listed, number, first, last, float("inf"), SIZE)
    edge = tl.where(low <= high, low, first)
    while low < high:
        # All above the smallest value, so that each round leaves one out.
        bounds = spread(low, high, tl.arange(0, BOUNDS) + 1, BOUNDS)
        bounds = tl.where(bounds > low, bounds, high)
        sums = tl.zeros([SIZE, BOUNDS], tl.int64)
        for start in range(0, number, SIZE):
            value, whole = list_weights(listed, start, number, top, scale, low, high, IS_MASS, SIZE)
            sums += tl.where(value[:, None] >= bounds[None, :], whole[:, None], 0)
        above = base + tl.sum(sums, 0).to(tl.float64) * unit
        begin, end, base = narrowed(bounds, above, wanted, low, float("inf"), base)
        low, high = list_range(listed, number, begin, end, high, SIZE)
        edge = tl.where(low <= high, low, begin)
    return edge


@triton.jit
def cut_kernel(
    peaks, coarse, fine, found, listed, cuts, ints, reals, vocab, blocks, programs,
    SIZE: tl.constexpr, PROGRAMS: tl.constexpr, LIST: tl.constexpr,
):  # fmt: skip
    """cuts [rows] = the least logit that top-k, and top-p of what that leaves, keep; one program a row."""
    row = tl.program_id(0).to(tl.int64)
    row_ints, row_reals = ints + row * WIDTH, reals + row * WIDTH
    if is_filtered(row_ints, row_reals):
        top = top_of(peaks, row, blocks, SIZE)
        scale = tl.load(row_reals + SCALE).to(tl.float32)
        top_k, top_p = tl.load(row_ints + TOP_K), tl.load(row_reals + TOP_P)
        number = tl.load(found + row)
        values = listed + row * vocab
        infinite = tl.full([], float("inf"), tl.float32)
        zero = tl.full([], 0.0, tl.float64)
        if top_k > 0:
            cut = edge_of(
                values, number, zero, top_k.to(tl.float64), top, scale, -infinite, infinite, False, LIST
            )
            if top_p < 1.0:
                total = tl.zeros([LIST], tl.int64)
                for start in range(0, number, LIST):
                    _, whole = list_weights(values, start, number, top, scale, cut, top, True, LIST)
                    total += whole
                wanted = top_p * (tl.sum(total, 0).to(tl.float64) / UNIT)
                cut = edge_of(values, number, zero, wanted, top, scale, cut, infinite, True, LIST)
        else:
            wanted, first, last, base = fine_part(coarse, fine, row, row_reals, top, programs, PROGRAMS)
            cut = edge_of(values, number, base, wanted, top, scale, first, last, True, LIST)
        tl.store(cuts + row, cut)
