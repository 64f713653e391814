"""Philox4x64-10 in Triton: the numbers of `cleave.runtime.sampling.philox`."""

from __future__ import annotations

import triton
import triton.language as tl

FIRST = tl.constexpr(0xD2E7470EE14C6C93)
SECOND = tl.constexpr(0xCA5A826395121157)
WEYL_FIRST = tl.constexpr(0x9E3779B97F4A7C15)
WEYL_SECOND = tl.constexpr(0xBB67AE8584CAA73B)
ULP = tl.constexpr(2.0**-53)


@triton.jit
def uniform(key, stream, counter):
    """A number in [0, 1) with 53 random bits, float64, of three uint64."""
    first_factor = tl.full([], FIRST, tl.uint64)
    second_factor = tl.full([], SECOND, tl.uint64)
    first_step = tl.full([], WEYL_FIRST, tl.uint64)
    second_step = tl.full([], WEYL_SECOND, tl.uint64)
    a = counter
    b = tl.full([], 0, tl.uint64)
    c = tl.full([], 0, tl.uint64)
    d = tl.full([], 0, tl.uint64)
    first, second = key, stream
    for _ in tl.static_range(10):
        high_a = tl.umulhi(first_factor, a)
        high_c = tl.umulhi(second_factor, c)
        low_a = first_factor * a
        low_c = second_factor * c
        a = high_c ^ b ^ first
        b = low_c
        c = high_a ^ d ^ second
        d = low_a
        first += first_step
        second += second_step
    return (a >> 11).to(tl.float64) * ULP
