"""The likeliest token of every row of logits, in Triton: one launch, whatever the number of rows."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def higher(value, place, other, other_place):
    """Which of two comes first: what is no number, then the higher value; of equals the lower place."""
    is_odd, other_is_odd = value != value, other != other
    is_equal = (other == value) | (is_odd & other_is_odd)
    takes = ((other > value) & ~is_odd) | (other_is_odd & ~is_odd) | (is_equal & (other_place < place))
    return tl.where(takes, other, value), tl.where(takes, other_place, place)


@triton.jit(do_not_specialize=["stride", "vocab", "splits"])
def likeliest_kernel(
    logits, best, tokens, values, places, arrived, stride, vocab, splits,
    MOST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """best [rows] and tokens [rows] of logits [rows, vocab]; `splits` programs share a row, MOST at most.

    Each leaves what it finds in values and places [rows, MOST]; the one that ends last chooses among them,
    and sets arrived [rows] back to zero.
    """
    row, split = tl.program_id(0), tl.program_id(1)
    blocks = tl.cdiv(vocab, BLOCK)
    begin, end = split * blocks // splits * BLOCK, (split + 1) * blocks // splits * BLOCK
    lane = tl.arange(0, BLOCK)
    start = logits + row.to(tl.int64) * stride
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    block = tl.full([BLOCK], begin, tl.int32)
    for first in range(begin, end, BLOCK):
        place = first + lane
        some = tl.load(start + place, mask=place < vocab, other=float("-inf"))
        takes = (some > top) | ((some != some) & (top == top))
        top, block = tl.where(takes, some, top), tl.where(takes, first, block)
    at = tl.minimum(block + lane, vocab - 1)
    value, token = tl.reduce((top, at), 0, higher)
    if splits == 1:
        tl.store(best + row, value)
        tl.store(tokens + row, token.to(tl.int64))
    else:
        tl.store(values + row * MOST + split, value)
        tl.store(places + row * MOST + split, token)
        tl.debug_barrier()
        if tl.atomic_add(arrived + row, 1, sem="acq_rel") == splits - 1:
            tl.debug_barrier()
            tl.store(arrived + row, 0)
            span = tl.arange(0, MOST)
            there = span < splits
            left = row * MOST + span
            found = tl.load(values + left, mask=there, other=float("-inf"), cache_modifier=".cg")
            found_at = tl.load(places + left, mask=there, other=vocab, cache_modifier=".cg")
            value, token = tl.reduce((found, found_at), 0, higher)
            tl.store(best + row, value)
            tl.store(tokens + row, token.to(tl.int64))
