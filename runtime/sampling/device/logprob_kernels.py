"""Kernels for log-probabilities: of the logits as the engine gave them, before any change."""

from __future__ import annotations

import triton
import triton.language as tl

from cleave.runtime.sampling.device.draw_kernels import top_of
from cleave.runtime.sampling.device.edit_kernels import is_edited_at
from cleave.runtime.sampling.device.fields import BLOCK, BLOCKS, LOGPROBS, POSITION, WIDTH
from cleave.runtime.sampling.device.weights import block_masses

LOG2_E = tl.constexpr(1.4426950408889634)

# Numbers of a row's answer, all of them float64, which holds every one exactly.
RANK = tl.constexpr(0)
TOTAL = tl.constexpr(1)
"""The sum of exp(logit - TOP) over the vocabulary."""
TOP = tl.constexpr(2)
"""The largest logit; infinity where one is not a number."""
LOGIT = tl.constexpr(3)
"""That of the token."""
BEST = tl.constexpr(4)
"""The likeliest tokens, and MOST further their logits."""
MOST = tl.constexpr(20)
ANSWER = tl.constexpr(44)


@triton.jit
def peaks_of(raw_peaks, peaks, row, blocks, row_ints):
    """The maxima of a row's blocks before it was changed, behind the draw."""
    result = peaks + row * blocks
    # The draw has moved the position on.
    if is_edited_at(row_ints, tl.load(row_ints + POSITION) - 1):
        result = raw_peaks + row * blocks
    return result


@triton.jit
def before(value, token, other_value, other_token):
    """Whether a token is likelier than another one; of equals the lowest comes first."""
    return (value > other_value) | ((value == other_value) & (token < other_token))


@triton.jit
def measure_kernel(
    logits, logits_stride, raw_peaks, peaks, masses, ranks, tokens, ints, vocab, blocks, programs,
    SIZE: tl.constexpr,
):  # fmt: skip
    """masses [rows, blocks] = the sums of exp(logit - the largest one) in every block of rows with logprobs,
    ranks [rows, programs] = how many logits of a program come before that of the row's token.

    One program for BLOCKS blocks of a row. Runs behind the draw.
    """
    row = tl.program_id(0).to(tl.int64)
    row_ints = ints + row * WIDTH
    if tl.load(row_ints + LOGPROBS) >= 0:
        source = logits + row * logits_stride
        row_peaks = peaks_of(raw_peaks, peaks, row, blocks, row_ints)
        top = top_of(row_peaks, 0, blocks, SIZE)
        first = tl.program_id(1) * BLOCKS
        scale = tl.full([], LOG2_E, tl.float32)
        mass = block_masses(source, row_peaks, first, blocks, vocab, top, scale, float("-inf"))
        block = first + tl.arange(0, BLOCKS)
        tl.store(masses + row * blocks + block, mass, mask=block < blocks)
        chosen = tl.load(tokens + row)
        token = first * BLOCK + tl.arange(0, BLOCKS * BLOCK)
        value = tl.load(source + token, mask=token < vocab, other=float("-inf"))
        is_before = before(value, token, tl.load(source + chosen), chosen) & (token < vocab)
        tl.store(ranks + row * programs + tl.program_id(1), tl.sum(is_before.to(tl.int32), 0))


@triton.jit
def rank_kernel(
    logits, logits_stride, raw_peaks, peaks, masses, ranks, tokens, answers, ints, vocab, blocks, programs,
    SIZE: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """answers [rows, ANSWER] of rows with logprobs; one program a row."""
    row = tl.program_id(0).to(tl.int64)
    row_ints = ints + row * WIDTH
    number = tl.load(row_ints + LOGPROBS)
    if number >= 0:
        source = logits + row * logits_stride
        answer = answers + row * ANSWER
        block, program = tl.arange(0, SIZE), tl.arange(0, PROGRAMS)
        row_peaks = peaks_of(raw_peaks, peaks, row, blocks, row_ints)
        peak = tl.load(row_peaks + block, mask=block < blocks, other=float("-inf"))
        mass = tl.load(masses + row * blocks + block, mask=block < blocks, other=0.0)
        rank = tl.sum(tl.load(ranks + row * programs + program, mask=program < programs, other=0), 0)
        tl.store(answer + RANK, (rank + 1).to(tl.float64))
        tl.store(answer + TOTAL, tl.sum(mass.to(tl.float64), 0))
        tl.store(answer + TOP, tl.max(peak, 0).to(tl.float64))
        tl.store(answer + LOGIT, tl.load(source + tl.load(tokens + row)).to(tl.float64))

        last = tl.full([], float("inf"), tl.float32)
        last_token = tl.full([], -1, tl.int32)
        for place in range(tl.minimum(number, vocab).to(tl.int32)):
            # A block's peak is the largest of its logits that are not among the likeliest yet.
            value = tl.max(peak, 0)
            best = tl.min(tl.where(peak == value, block, SIZE), 0)
            token = best * BLOCK + tl.arange(0, BLOCK)
            inside = token < vocab
            logit = tl.load(source + token, mask=inside, other=float("-inf"))
            is_left = before(last, last_token, logit, token) & inside
            last_token = tl.min(tl.where(is_left & (logit == value), token, vocab), 0)
            last = value
            tl.store(answer + BEST + place, last_token.to(tl.float64))
            tl.store(answer + BEST + MOST + place, last.to(tl.float64))
            is_left = before(last, last_token, logit, token) & inside
            rest = tl.max(tl.where(is_left, logit, float("-inf")), 0)
            peak = tl.where(block == best, rest, peak)
