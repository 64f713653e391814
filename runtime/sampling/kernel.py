"""The compiled part of the sampler: a token for each row of logits, and what logprobs are made of.

Rows do not depend on each other, and a row is added up in one order. So a row has the same token alone
and in any batch, at any place of it, on any number of threads.
"""

from __future__ import annotations

import inspect
import math
import sys
import zlib
from typing import Any

import numpy as np

import cleave.lanes
from cleave.compiled import Function, part, whole
from cleave.runtime.sampling import blocks, bounds, philox
from cleave.runtime.sampling.blocks import BLOCK, BOUNDS, block_mass, block_peak, block_weights
from cleave.runtime.sampling.bounds import cutoff_of_count, cutoff_of_mass
from cleave.runtime.sampling.philox import uniform

NOT_FINITE = -1
"""Instead of a token: a logit is NaN, or the largest is infinite."""
NOTHING_LEFT = -2
"""Instead of a token: every logit is minus infinity."""

_INFINITE = np.float32(math.inf)
_FAR = 127.0
"""What weighs less than 2^-126 weighs nothing, so blocks without more need not be looked at."""
_NOTHING = np.float32(0.0)
_LOG2_E = math.log2(math.e)


def scratch_floats(vocab: int) -> int:
    """Elements of the `scratch` of every function here: tail, block, bounds, sums, peaks, masses, buffer."""
    blocks = -(-vocab // BLOCK)
    return 2 * BLOCK + 2 * BOUNDS + 2 * blocks + (blocks + 2) * BLOCK


@part
def _scan(row: Any, tail: Any, peaks: Any) -> Any:
    """The largest logit; NaN where one is. Fills `peaks`, and copies the last part of a block to `tail`."""
    whole = len(row) // BLOCK
    if whole < len(peaks):
        tail[:] = -_INFINITE
        for index in range(whole * BLOCK, len(row)):
            tail[index - whole * BLOCK] = row[index]
    top = -_INFINITE
    for block in range(len(peaks)):
        peak = block_peak(row, block * BLOCK) if block < whole else block_peak(tail, 0)
        peaks[block] = peak
        if peak != peak:
            return peak
        top = max(top, peak)
    return top


@part
def _weigh(row: Any, tail: Any, peaks: Any, masses: Any, top: Any, scale: Any, low: Any) -> Any:
    """The mass of the logits from `low` on. Fills `masses`, a number a block."""
    whole = len(row) // BLOCK
    total = 0.0
    for block in range(len(peaks)):
        mass: Any = _NOTHING
        if peaks[block] >= low:
            if block < whole:
                mass = block_mass(row, block * BLOCK, top, scale, low)
            else:
                mass = block_mass(tail, 0, top, scale, low)
        masses[block] = mass
        total += mass
    return total


@part
def _first_at(row: Any, peaks: Any, value: Any) -> Any:
    """The lowest token whose logit is `value`, which is the peak of some block."""
    for block in range(len(peaks)):
        if peaks[block] == value:
            for token in range(block * BLOCK, min(len(row), (block + 1) * BLOCK)):
                if row[token] == value:
                    return token
    return NOT_FINITE


@part
def _token_at(
    row: Any, tail: Any, masses: Any, weights: Any, top: Any, scale: Any, low: Any, target: Any
) -> Any:  # fmt: skip
    """The token at which the running mass exceeds `target`; the last one of all where rounding hides it."""
    chosen = 0
    for block in range(len(masses)):
        if masses[block] > 0.0:
            chosen = block
            if target < masses[block]:
                break
            target -= masses[block]
    if chosen < len(row) // BLOCK:
        block_weights(row, chosen * BLOCK, top, scale, low, weights)
    else:
        block_weights(tail, 0, top, scale, low, weights)
    last = 0
    for index in range(BLOCK):
        if weights[index] > 0.0:
            last = index
            if target < weights[index]:
                break
            target -= weights[index]
    return chosen * BLOCK + last


@part
def _least_kept(
    row: Any, tail: Any, peaks: Any, top: Any, scale: Any, top_k: Any, top_p: Any, min_p: Any, limits: Any,
    sums: Any, buffer: Any,
) -> Any:  # fmt: skip
    """The least logit that top-k, then top-p of what that leaves, then min-p keep."""
    low = np.float32(top - _FAR / scale)
    if 0 < top_k < len(row):
        low = max(low, cutoff_of_count(row, tail, peaks, top_k, buffer, limits, sums))
    if top_p < 1.0:
        low = max(low, cutoff_of_mass(row, tail, peaks, low, top, scale, top_p, buffer, limits, sums))
    if min_p > 0.0:
        low = max(low, np.float32(top + math.log2(min_p) / scale))
    return low


@part
def _choose(row: Any, scale: Any, top_k: Any, top_p: Any, min_p: Any, random: Any, scratch: Any) -> Any:
    """The token of one row; see `choose`."""
    count = (len(row) + BLOCK - 1) // BLOCK
    tail, scratch = scratch[:BLOCK], scratch[BLOCK:]
    weights, scratch = scratch[:BLOCK], scratch[BLOCK:]
    limits, scratch = scratch[:BOUNDS], scratch[BOUNDS:]
    sums, scratch = scratch[:BOUNDS], scratch[BOUNDS:]
    peaks, scratch = scratch[:count], scratch[count:]
    masses, buffer = scratch[:count], scratch[count:]

    top = _scan(row, tail, peaks)
    if top != top or top == _INFINITE:
        return NOT_FINITE
    if top == -_INFINITE:
        return NOTHING_LEFT
    if scale == 0.0:
        return _first_at(row, peaks, top)
    low = _least_kept(row, tail, peaks, top, scale, top_k, top_p, min_p, limits, sums, buffer)
    total = _weigh(row, tail, peaks, masses, top, scale, low)
    return _token_at(row, tail, masses, weights, top, scale, low, random * total)


@part
def _ranked(row: Any, tail: Any, peaks: Any, tokens: Any, values: Any) -> None:
    """The largest logits, largest first, of equals the lowest token; `peaks` is used up."""
    whole = len(row) // BLOCK
    last, last_token = _INFINITE, -1
    for place in range(len(tokens)):
        best = 0
        for block in range(len(peaks)):
            if peaks[block] > peaks[best]:
                best = block
        values[place] = last = peaks[best]
        block = row[best * BLOCK : best * BLOCK + BLOCK] if best < whole else tail
        start = last_token - best * BLOCK + 1 if place > 0 and values[place - 1] == last else 0
        index = max(start, 0)
        while block[index] != last:
            index += 1
        tokens[place] = last_token = best * BLOCK + index
        # What the block has left comes after this one in the order.
        peak = -_INFINITE
        for other in range(BLOCK):
            value = block[other]
            if value < last or (value == last and other > index):
                peak = max(peak, value)
        peaks[best] = peak


@part
def _rank(row: Any, token: Any) -> Any:
    """How many logits are larger, or equal with a lower token, and one."""
    value = row[token]
    above = 0
    for index in range(len(row)):
        above += row[index] > value
    for index in range(token):
        above += row[index] == value
    return above + 1


def _digest() -> int:
    """Of all the text that the functions below are compiled from; see `cpu_kernel._compile`."""
    modules = (cleave.lanes, blocks, bounds, philox, sys.modules[__name__])
    return zlib.crc32("".join(inspect.getsource(module) for module in modules).encode())


def _compile(source_digest: int) -> tuple[Function, Function, Function]:
    @whole("int64(float32[:, ::1], float64[:, ::1], uint64[:, ::1], int64, int64, int64[::1], float32[::1])")
    def choose(
        logits: Any, settings: Any, keys: Any, begin: Any, end: Any, tokens: Any, scratch: Any
    ) -> Any:  # fmt: skip
        """tokens[row] = the token of logits[row], or NOT_FINITE, or NOTHING_LEFT, for rows from begin to end.

        settings [rows, 4]: log2(e) / temperature, 0 for the likeliest token; top_k, 0 for all; top_p;
        min_p. keys [rows, 3]: key, stream and counter of `uniform`. Returns the least of the tokens.
        """
        _ = source_digest
        least = len(logits[0])
        for row in range(begin, end):
            scale, random = np.float32(settings[row, 0]), 0.0
            if scale != 0.0:
                random = uniform(keys[row, 0], keys[row, 1], keys[row, 2])
            top_k = np.int64(settings[row, 1])
            token = _choose(logits[row], scale, top_k, settings[row, 2], settings[row, 3], random, scratch)
            tokens[row] = token
            least = min(least, token)
        return least

    @whole("int64(float32[::1], int64[::1], float32[::1], float64[::1], float32[::1])")
    def rank(row: Any, tokens: Any, values: Any, normal: Any, scratch: Any) -> Any:
        """The len(tokens) largest logits of a row, largest first, of equals the lowest token.

        normal[0] = log of the sum of the exponentials of all logits. Returns 0, or NOT_FINITE.
        """
        _ = source_digest
        count = (len(row) + BLOCK - 1) // BLOCK
        tail, peaks = scratch[:BLOCK], scratch[BLOCK : BLOCK + count]
        masses = scratch[BLOCK + count : BLOCK + 2 * count]
        top = _scan(row, tail, peaks)
        if not -_INFINITE < top < _INFINITE:
            return NOT_FINITE
        total = _weigh(row, tail, peaks, masses, top, np.float32(_LOG2_E), -_INFINITE)
        normal[0] = top + math.log(total)
        _ranked(row, tail, peaks, tokens, values)
        return 0

    @whole("int64(float32[::1], int64)")
    def rank_of(row: Any, token: Any) -> Any:
        """The rank of a token in a row, from 1; of equals the lowest token comes first."""
        _ = source_digest
        return _rank(row, token)

    return choose, rank, rank_of


choose, rank, rank_of = _compile(_digest())
