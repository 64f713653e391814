"""What is done to one row of logits before a token is chosen from it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cleave.compiled import whole

_HIDDEN = np.float32(-math.inf)
_ALL = np.uint32(0xFFFFFFFF)


@whole("void(float32[::1], uint32[::1])")
def hide_outside(row: Any, mask: Any) -> None:
    """Minus infinity for every token whose bit is 0: token t is bit t % 32 of mask[t // 32]."""
    for word in range((len(row) + 31) // 32):
        bits = mask[word]
        if bits == _ALL:
            continue
        for token in range(word * 32, min(len(row), word * 32 + 32)):
            if not (bits >> np.uint32(token & 31)) & np.uint32(1):
                row[token] = _HIDDEN


@whole("void(float32[::1], int64[::1], int64[::1], int64, float32, float32, float32)")
def penalise(
    row: Any, tokens: Any, counts: Any, size: Any, repetition: Any, frequency: Any, presence: Any
) -> None:  # fmt: skip
    """Penalties for the first `size` of `tokens`, each there once; counts: how often the answer has it."""
    for index in range(size):
        token = tokens[index]
        value = row[token]
        value = value * repetition if value < 0 else value / repetition
        if counts[index]:
            value = value - frequency * np.float32(counts[index]) - presence
        row[token] = value
