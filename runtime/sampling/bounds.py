"""The least logit that top-k and top-p leave, found without sorting.

Both are one question: the smallest value `t` such that less than `wanted` lies strictly above it, counted
(top-k) or weighed (top-p). What is at least `t` is kept, so equal logits are kept or dropped together. The
range that `t` lies in is cut into parts again and again, and only what lies in the right part is looked at
next.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cleave.compiled import part
from cleave.runtime.sampling.blocks import (
    BLOCK,
    BOUNDS,
    FEW_BOUNDS,
    block_pack,
    block_range,
    block_split,
    block_split_few,
)

_FEW = 48
"""Values that are looked at one by one."""
_SAMPLE = 8
"""Every so manieth block of a row is looked at first."""
_COUNT = np.float32(0.0)
"""The scale at which every value weighs 1."""
_INFINITE = np.float32(math.inf)
_LOWEST = np.float32(-3.4028234663852886e38)


@part
def cutoff_of_count(row: Any, tail: Any, peaks: Any, count: Any, buffer: Any, bounds: Any, sums: Any) -> Any:
    """The `count`-th largest logit of a row; the smallest finite one where there are fewer."""
    low = -_INFINITE
    if count <= len(peaks):
        # As many blocks have a value that large.
        n = 0
        for block in range(len(peaks)):
            if peaks[block] > -_INFINITE:
                buffer[n] = peaks[block]
                n += 1
        if count <= n:
            low = _refine(buffer, n, 0.0, np.float64(count), _COUNT, _COUNT, bounds, sums)
    n = _gather(row, tail, peaks, low, _INFINITE, buffer)
    return _refine(buffer, n, 0.0, np.float64(count), _COUNT, _COUNT, bounds, sums)


@part
def cutoff_of_mass(
    row: Any, tail: Any, peaks: Any, low: Any, top: Any, scale: Any, share: Any, buffer: Any, bounds: Any,
    sums: Any,
) -> Any:  # fmt: skip
    """The least of the likeliest logits that have the `share` of the mass from `low` on."""
    # The top one weighs 1, so all that is below this weighs less than half of what is to be dropped.
    depth = 1.0 + math.log2(len(row) / max(1.0 - share, 1e-30))
    floor = max(low, np.float32(top - depth / scale))
    above = np.zeros(BOUNDS)
    used = BOUNDS
    _spread(floor, top, bounds)
    bounds[0] = low
    if len(peaks) >= _SAMPLE * _SAMPLE:
        # A sample says about where to look; where it is wrong, more is left to be looked at.
        first, last = floor, top
        for _ in range(2):
            _add_masses(row, tail, peaks, _SAMPLE, BOUNDS, top, scale, bounds, sums, above)
            index = _last_above(above, share * above[0], 1, BOUNDS)
            first = bounds[index - 1] if index > 1 else first
            last = bounds[index] if index < BOUNDS else last
            for index in range(1, BOUNDS):
                bounds[index] = np.float32(first + (np.float64(last) - first) * (index - 1) / (BOUNDS - 2))
        used = FEW_BOUNDS
        bounds[1] = max(floor, np.float32(first - (last - first)))
        bounds[2] = min(top, np.float32(last + (last - first)))
    _add_masses(row, tail, peaks, 1, used, top, scale, bounds, sums, above)
    wanted = share * above[0]
    index = _last_above(above, wanted, 1, used)
    first = bounds[index - 1] if index > 1 else floor
    last = bounds[index] if index < used else _INFINITE
    base = above[index] if index < used else 0.0
    n = _gather(row, tail, peaks, first, last, buffer)
    return _refine(buffer, n, base, wanted, top, scale, bounds, sums) if n > 0 else first


@part
def _add_masses(
    row: Any, tail: Any, peaks: Any, step: Any, used: Any, top: Any, scale: Any, bounds: Any, sums: Any,
    above: Any,
) -> None:  # fmt: skip
    """above[i] = the mass from bounds[i] on, bounds[0] being the least, in every `step`-th block."""
    above[:] = 0.0
    whole = len(row) // BLOCK
    for block in range(0, len(peaks), step):
        if peaks[block] >= bounds[0]:
            values, at = (row, block * BLOCK) if block < whole else (tail, 0)
            if used == FEW_BOUNDS:
                block_split_few(values, at, top, scale, bounds, sums)
            else:
                block_split(values, at, top, scale, bounds, sums)
            for index in range(used):
                above[index] += sums[index]


@part
def _last_above(above: Any, wanted: Any, least: Any, used: Any) -> Any:
    """How many of the bounds there are up to the last with all that is wanted above; at least `least`."""
    index = used
    while index > least and above[index - 1] < wanted:
        index -= 1
    return index


@part
def _gather(row: Any, tail: Any, peaks: Any, low: Any, end: Any, buffer: Any) -> Any:
    """Put the finite logits from `low` to below `end` into the buffer; gives back how many they are."""
    n = 0
    whole = len(row) // BLOCK
    low = max(low, _LOWEST)
    for block in range(len(peaks)):
        if peaks[block] >= low:
            if block < whole:
                n += block_pack(row, block * BLOCK, low, end, buffer, n)
            else:
                n += block_pack(tail, 0, low, end, buffer, n)
    return n


@part
def _refine(
    buffer: Any, n: Any, base: Any, wanted: Any, top: Any, scale: Any, bounds: Any, sums: Any
) -> Any:  # fmt: skip
    """The smallest of the first `n` values with less than `wanted` above it, `base` of it outside of them."""
    above = np.zeros(BOUNDS)
    while True:
        end = (n + BLOCK - 1) // BLOCK * BLOCK
        buffer[n:end] = -_INFINITE
        low, high = _range(buffer, end, sums)
        if n <= _FEW or low == high:
            break
        _spread(low, high, bounds)
        above[:] = base
        for at in range(0, end, BLOCK):
            block_split(buffer, at, top, scale, bounds, sums)
            for index in range(BOUNDS):
                above[index] += sums[index]
        index = _last_above(above, wanted, 0, BOUNDS)
        first = bounds[index - 1] if index > 0 else low
        last = bounds[index] if index < BOUNDS else _INFINITE
        base = above[index] if index < BOUNDS else base
        kept = 0
        for at in range(0, end, BLOCK):
            kept += block_pack(buffer, at, first, last, buffer, kept)
        if kept == 0:
            return first
        n = kept
    return _walk(buffer, n, base, wanted, top, scale) if low < high else low


@part
def _spread(low: Any, high: Any, bounds: Any) -> None:
    """Divide a range into equal parts."""
    for index in range(BOUNDS):
        bounds[index] = np.float32(low + (np.float64(high) - low) * (index + 1) / (BOUNDS + 1))


@part
def _range(buffer: Any, end: Any, sums: Any) -> Any:
    low, high = _INFINITE, -_INFINITE
    for at in range(0, end, BLOCK):
        block_range(buffer, at, sums)
        low = min(low, sums[0])
        high = max(high, sums[1])
    return low, high


@part
def _walk(buffer: Any, n: Any, above: Any, wanted: Any, top: Any, scale: Any) -> Any:
    """`_refine` for few values: from the largest down, equal ones together."""
    reached = _INFINITE
    while above < wanted:
        value = -_INFINITE
        for index in range(n):
            if value < buffer[index] < reached:
                value = buffer[index]
        if value == -_INFINITE:
            break
        same = 0
        for index in range(n):
            same += buffer[index] == value
        above += same * 2.0 ** (np.float64(value - top) * scale)
        reached = value
    return reached
