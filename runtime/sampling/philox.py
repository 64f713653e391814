"""Philox4x64-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
(SC11): a random number is a function of a key and a counter, so nothing has to be drawn in order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cleave.compiled import part

_ROUNDS = 10
_FIRST, _SECOND = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_WEYL_FIRST, _WEYL_SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
_HALF, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)
_UNUSED = np.uint64(11)
_ULP = 2.0**-53


@part
def _high(a: Any, b: Any) -> Any:
    """The upper 64 of the 128 bits of a * b."""
    a_low, a_high, b_low, b_high = a & _LOW, a >> _HALF, b & _LOW, b >> _HALF
    middle = a_high * b_low + ((a_low * b_low) >> _HALF)
    other = a_low * b_high + (middle & _LOW)
    return a_high * b_high + (middle >> _HALF) + (other >> _HALF)


@part
def uniform(key: Any, stream: Any, counter: Any) -> Any:
    """A number in [0, 1) with 53 random bits, of uint64 `key`, `stream` and `counter`.

    It is that of numpy's `Generator(Philox(key=(key, stream), counter=counter - 1)).random()`.
    """
    zero = np.uint64(0)
    a, b, c, d = counter, zero, zero, zero
    first, second = key, stream
    for _ in range(_ROUNDS):
        a, b, c, d = _high(_SECOND, c) ^ b ^ first, _SECOND * c, _high(_FIRST, a) ^ d ^ second, _FIRST * a
        first, second = first + _WEYL_FIRST, second + _WEYL_SECOND
    return np.float64(a >> _UNUSED) * _ULP
