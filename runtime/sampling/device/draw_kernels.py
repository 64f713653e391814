"""Kernels that choose a token: block maxima, block masses, and the place where the running mass exceeds what
was drawn.
"""

from __future__ import annotations

import triton
import triton.language as tl

from cleave.runtime.sampling.device.edit_kernels import is_edited
from cleave.runtime.sampling.device.fields import (
    BLOCK,
    BLOCKS,
    COUNTS,
    FAR,
    FLAGS,
    HIDES,
    KEY,
    MIN_P,
    NOT_FINITE,
    NOTHING_LEFT,
    POSITION,
    SCALE,
    SEEN,
    SLOT,
    STREAM,
    TOP_K,
    TOP_P,
    WIDTH,
)
from cleave.runtime.sampling.device.philox import uniform
from cleave.runtime.sampling.device.weights import block_masses, weight


@triton.jit
def source_of(logits, logits_stride, edited, vocab, row, row_ints):
    """Where the logits of a row are that the choice is made from."""
    source = logits + row * logits_stride
    if is_edited(row_ints):
        source = edited + row * vocab
    return source


@triton.jit
def top_of(peaks, row, blocks, SIZE: tl.constexpr):
    """The largest logit of a row, infinity where one is not a number."""
    block = tl.arange(0, SIZE)
    return tl.max(tl.load(peaks + row * blocks + block, mask=block < blocks, other=float("-inf")), 0)


@triton.jit
def is_filtered(row_ints, row_reals):
    """Whether top-k or top-p leaves something out."""
    return (tl.load(row_ints + TOP_K) > 0) | (tl.load(row_reals + TOP_P) < 1.0)


@triton.jit
def least_of(top, row_reals):
    """What is below this weighs nothing."""
    return (top.to(tl.float64) - tl.load(row_reals + FAR)).to(tl.float32)


@triton.jit
def kept_from(top, row, row_ints, row_reals, cuts):
    """The least logit that is kept; cuts [rows] has what top-k and top-p say."""
    low = least_of(top, row_reals)
    if is_filtered(row_ints, row_reals):
        low = tl.maximum(low, tl.load(cuts + row))
    return tl.maximum(low, (top.to(tl.float64) + tl.load(row_reals + MIN_P)).to(tl.float32))


@triton.jit
def scan_kernel(logits, logits_stride, edited, peaks, found, ints, vocab, blocks):
    """peaks [rows, blocks] = the largest logit of every block, infinity where one is not a number.

    One program for BLOCKS blocks of a row. found [rows] = 0, for `gather_kernel`.
    """
    row = tl.program_id(0).to(tl.int64)
    source = source_of(logits, logits_stride, edited, vocab, row, ints + row * WIDTH)
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    token = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    value = tl.load(source + token, mask=token < vocab, other=float("-inf"))
    value = tl.where(value == value, value, float("inf"))
    tl.store(peaks + row * blocks + block, tl.max(value, 1), mask=block < blocks)
    if tl.program_id(1) == 0:
        tl.store(found + row, 0)


@triton.jit
def weigh_kernel(
    logits, logits_stride, edited, peaks, masses, cuts, ints, reals, vocab, blocks, SIZE: tl.constexpr
):  # fmt: skip
    """masses [rows, blocks] = the mass of what is kept in every block; one program for BLOCKS of a row."""
    row = tl.program_id(0).to(tl.int64)
    row_ints, row_reals = ints + row * WIDTH, reals + row * WIDTH
    scale = tl.load(row_reals + SCALE).to(tl.float32)
    if scale != 0.0:
        source = source_of(logits, logits_stride, edited, vocab, row, row_ints)
        top = top_of(peaks, row, blocks, SIZE)
        low = kept_from(top, row, row_ints, row_reals, cuts)
        first = tl.program_id(1) * BLOCKS
        mass = block_masses(source, peaks + row * blocks, first, blocks, vocab, top, scale, low)
        block = first + tl.arange(0, BLOCKS)
        tl.store(masses + row * blocks + block, mass, mask=block < blocks)


@triton.jit
def first_over(weights, target, SIZE: tl.constexpr):
    """The first of weights [SIZE] float64 at which their running sum exceeds `target`, and what of the
    target is left there; the last that weighs anything where rounding hides it.
    """
    index = tl.arange(0, SIZE)
    sums = tl.cumsum(weights, 0)
    over = tl.min(tl.where((weights > 0.0) & (target < sums), index, SIZE), 0)
    last = tl.max(tl.where(weights > 0.0, index, 0), 0)
    chosen = tl.minimum(over, last)
    before = tl.sum(tl.where(index == chosen, sums - weights, 0.0), 0)
    return chosen, target - before


@triton.jit
def draw_kernel(
    logits, logits_stride, edited, raw_peaks, peaks, masses, cuts, counts, tokens, status, ints, reals,
    vocab, blocks, SIZE: tl.constexpr,
):  # fmt: skip
    """tokens [rows] = the next tokens, 0 where there is none; status [rows] = why, or 0; one program a row.

    The token is counted, and the row's position is that of the token after it.
    """
    row = tl.program_id(0).to(tl.int64)
    row_ints, row_reals = ints + row * WIDTH, reals + row * WIDTH
    source = source_of(logits, logits_stride, edited, vocab, row, row_ints)
    flags = tl.load(row_ints + FLAGS)
    position = tl.load(row_ints + POSITION)
    scale = tl.load(row_reals + SCALE).to(tl.float32)
    block = tl.arange(0, SIZE)
    peak = tl.load(peaks + row * blocks + block, mask=block < blocks, other=float("-inf"))
    top = tl.max(peak, 0)
    failure = tl.where(top == float("inf"), NOT_FINITE, tl.where(top == float("-inf"), NOTHING_LEFT, 0))
    if (flags & HIDES) != 0:
        raw = top_of(raw_peaks, row, blocks, SIZE)
        failure = tl.where((raw == float("inf")) | (raw == float("-inf")), NOT_FINITE, failure)

    chosen = tl.min(tl.where(peak == top, block, SIZE), 0)
    low = top
    target = tl.full([], 0.0, tl.float64)
    if scale != 0.0:
        key = tl.load(row_ints + KEY).to(tl.uint64, bitcast=True)
        stream = tl.load(row_ints + STREAM).to(tl.uint64, bitcast=True)
        random = uniform(key, stream, position.to(tl.uint64, bitcast=True))
        low = kept_from(top, row, row_ints, row_reals, cuts)
        mass = tl.load(masses + row * blocks + block, mask=block < blocks, other=0.0).to(tl.float64)
        chosen, target = first_over(mass, random * tl.sum(mass, 0), SIZE)

    # The likeliest token is the first of those that weigh 1.
    lane = chosen * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(source + lane, mask=lane < vocab, other=float("-inf"))
    place, _ = first_over(weight(value, top, scale, low).to(tl.float64), target, BLOCK)
    token = tl.where(failure == 0, chosen * BLOCK + place, 0)
    tl.debug_barrier()  # every warp has read what is written now
    tl.store(tokens + row, token.to(tl.int64))
    tl.store(status + row, failure.to(tl.int64))
    if ((flags & COUNTS) != 0) & (failure == 0):
        at = counts + tl.load(row_ints + SLOT) * vocab + token
        tl.store(at, (tl.load(at) | SEEN) + 1)
    tl.store(row_ints + POSITION, position + 1)
