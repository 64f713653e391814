"""Kernels that change logits before the choice: masks, biases and penalties, as `SamplingState.edit`."""

from __future__ import annotations

import triton
import triton.language as tl

from cleave.runtime.sampling.device.fields import (
    BLOCK,
    BLOCKS,
    COUNTS,
    EDITS,
    FLAGS,
    FREQUENCY,
    MIN_TOKENS,
    POSITION,
    PRESENCE,
    REPETITION,
    SEEN,
    SLOT,
    WIDTH,
)


@triton.jit
def is_edited(row_ints):
    """Whether the logits of this row are changed before the choice."""
    return is_edited_at(row_ints, tl.load(row_ints + POSITION))


@triton.jit
def is_edited_at(row_ints, position):
    """The same for a place in the answer."""
    edits = (tl.load(row_ints + FLAGS) & EDITS) != 0
    return edits | (position < tl.load(row_ints + MIN_TOKENS))


@triton.jit
def penalised(value, count, row_reals):
    """Logits after the penalties; count [like value]: SEEN and how often the answer has the token."""
    repetition = tl.load(row_reals + REPETITION).to(tl.float32)
    frequency = tl.load(row_reals + FREQUENCY).to(tl.float32)
    presence = tl.load(row_reals + PRESENCE).to(tl.float32)
    number = (count & (SEEN - 1)).to(tl.float32)
    factor = tl.zeros_like(value) + repetition
    repeated = tl.where(value < 0, value * factor, tl.div_rn(value, factor))
    value = tl.where(count != 0, repeated, value)
    return tl.where(number > 0, value - frequency * number - presence, value)


@triton.jit
def edit_kernel(
    logits, logits_stride, edited, raw_peaks, ints, reals, allowed, before_stop, counts, vocab, words, blocks
):  # fmt: skip
    """edited [rows, vocab] = the logits of rows that change theirs, all but for biases; raw_peaks [rows,
    blocks] = the largest logit of every block before that, infinity where one is not a number.

    One program for BLOCKS blocks of a row. allowed, before_stop [slots, words]: the bits of the tokens that
    may come, and that may come before there are min_tokens. counts [slots, vocab]: see `penalised`.
    """
    row = tl.program_id(0).to(tl.int64)
    row_ints, row_reals = ints + row * WIDTH, reals + row * WIDTH
    if is_edited(row_ints):
        slot = tl.load(row_ints + SLOT)
        block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
        token = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
        inside = token < vocab
        value = tl.load(logits + row * logits_stride + token, mask=inside, other=float("-inf"))
        numbers = tl.where(value == value, value, float("inf"))
        tl.store(raw_peaks + row * blocks + block, tl.max(numbers, 1), mask=block < blocks)
        is_early = tl.load(row_ints + POSITION) < tl.load(row_ints + MIN_TOKENS)
        masks = allowed
        if is_early:
            masks = before_stop
        bits = tl.load(masks + slot * words + token // 32, mask=inside, other=0)
        value = tl.where((bits >> (token % 32)) & 1 != 0, value, float("-inf"))
        if (tl.load(row_ints + FLAGS) & COUNTS) != 0:
            count = tl.load(counts + slot * vocab + token, mask=inside, other=0)
            value = penalised(value, count, row_reals)
        tl.store(edited + row * vocab + token, value, mask=inside)


@triton.jit
def bias_kernel(
    logits, logits_stride, edited, ints, reals, counts, biased, biases, bias_counts, vocab, room,
    SIZE: tl.constexpr,
):  # fmt: skip
    """Make the logits of biased tokens again, with their bias, where they are allowed; one program a row.

    biased [slots, room] int32 tokens, biases [slots, room] float32, bias_counts [slots] how many they are.
    """
    row = tl.program_id(0).to(tl.int64)
    row_ints, row_reals = ints + row * WIDTH, reals + row * WIDTH
    if is_edited(row_ints):
        slot = tl.load(row_ints + SLOT)
        number = tl.load(bias_counts + slot)
        has_counts = (tl.load(row_ints + FLAGS) & COUNTS) != 0
        for start in range(0, number, SIZE):
            at = start + tl.arange(0, SIZE)
            inside = at < number
            token = tl.load(biased + slot * room + at, mask=inside, other=0)
            bias = tl.load(biases + slot * room + at, mask=inside, other=0.0)
            value = tl.load(logits + row * logits_stride + token, mask=inside, other=0.0) + bias
            if has_counts:
                count = tl.load(counts + slot * vocab + token, mask=inside, other=0)
                value = penalised(value, count, row_reals)
            before = tl.load(edited + row * vocab + token, mask=inside, other=float("-inf"))
            is_allowed = before != float("-inf")
            tl.store(edited + row * vocab + token, value, mask=inside & is_allowed)
