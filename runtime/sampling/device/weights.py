"""What a logit weighs, bit for bit as in `cleave.runtime.sampling.blocks` and `cleave.lanes`.

Kernels that use this are compiled without contraction of a * b + c, which would round otherwise.
"""

from __future__ import annotations

import triton
import triton.language as tl

from cleave.runtime.sampling.device.fields import BLOCK, BLOCKS

# As `cleave.lanes` has them.
ROUND = tl.constexpr(12582912.0)
C0 = tl.constexpr(0.693147182)
C1 = tl.constexpr(0.240226477)
C2 = tl.constexpr(0.0555033237)
C3 = tl.constexpr(0.00961843692)
C4 = tl.constexpr(0.00133988739)
C5 = tl.constexpr(0.00015353362)


@triton.jit
def exp2(x):
    """2^x for float32 x <= 0; 1 for 0, and 0 where the result would be below 2^-126."""
    x = tl.maximum(x, -127.0)
    shifted = x + ROUND
    fraction = x - (shifted - ROUND)
    power = tl.full(x.shape, C5, tl.float32)
    power = tl.fma(power, fraction, tl.full(x.shape, C4, tl.float32))
    power = tl.fma(power, fraction, tl.full(x.shape, C3, tl.float32))
    power = tl.fma(power, fraction, tl.full(x.shape, C2, tl.float32))
    power = tl.fma(power, fraction, tl.full(x.shape, C1, tl.float32))
    power = tl.fma(power, fraction, tl.full(x.shape, C0, tl.float32))
    power = tl.fma(power, fraction, tl.full(x.shape, 1.0, tl.float32))
    exponent = (shifted.to(tl.int32, bitcast=True) << 23) + 0x3F800000
    return power * exponent.to(tl.float32, bitcast=True)


@triton.jit
def weight(value, top, scale, low):
    """2^((value - top) * scale); 0 below `low`. All float32."""
    return tl.where(value >= low, exp2((value - top) * scale), 0.0)


@triton.jit
def add_halves(sums, LANES: tl.constexpr):
    """[blocks, LANES] -> [blocks, LANES / 2]: each lane and the one LANES / 2 further."""
    return tl.sum(tl.reshape(sums, [BLOCKS, 2, LANES // 2]), 1)


@triton.jit
def block_masses(source, row_peaks, first, blocks, vocab, top, scale, low):
    """[BLOCKS] float32: what the blocks from number `first` on weigh, added in the order of the CPU.

    Sixteen lanes in four groups take every 64th logit; then come the groups, then the lanes in halves.
    Blocks that have nothing from `low` on are not read.
    """
    number = first + tl.arange(0, BLOCKS)
    peak = tl.load(row_peaks + number, mask=number < blocks, other=float("-inf"))
    is_read = (peak >= low)[:, None]
    block = number[:, None] * BLOCK
    lane = tl.arange(0, 16)[None, :]
    total = tl.zeros([BLOCKS, 16], tl.float32)
    for group in tl.static_range(4):
        part = tl.zeros([BLOCKS, 16], tl.float32)
        for turn in tl.static_range(4):
            at = block + turn * 64 + group * 16 + lane
            value = tl.load(source + at, mask=(at < vocab) & is_read, other=float("-inf"))
            part += weight(value, top, scale, low)
        total += part
    total = add_halves(total, 16)
    total = add_halves(total, 8)
    total = add_halves(total, 4)
    return tl.reshape(tl.sum(tl.reshape(total, [BLOCKS, 2, 1]), 1), [BLOCKS])
