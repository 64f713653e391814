"""What the kernels are told of a row: int64 and float64 numbers side by side, in one packed array."""

from __future__ import annotations

import triton.language as tl

WIDTH = tl.constexpr(16)
"""Numbers of eight bytes from one row to the next; the first half are int64, the second float64."""
HALF = tl.constexpr(8)

# int64
FLAGS = tl.constexpr(0)
SLOT = tl.constexpr(1)
"""Row of the tables of `Slots`."""
POSITION = tl.constexpr(2)
"""The token's place in the answer; the draw adds one, for the step after."""
KEY = tl.constexpr(3)
STREAM = tl.constexpr(4)
TOP_K = tl.constexpr(5)
"""0 for all tokens."""
MIN_TOKENS = tl.constexpr(6)
LOGPROBS = tl.constexpr(7)
"""The likeliest tokens wanted; -1: no logprobs."""

# float64
SCALE = tl.constexpr(0)
"""log2(e) / temperature, a float32; 0 for the likeliest token."""
FAR = tl.constexpr(1)
"""What is this much below the largest logit weighs nothing."""
TOP_P = tl.constexpr(2)
DEPTH = tl.constexpr(3)
"""All that is this much below the largest logit weighs less than half of what top-p drops."""
MIN_P = tl.constexpr(4)
"""How far below the largest logit min-p reaches, negative; minus infinity where it is off."""
REPETITION = tl.constexpr(5)
FREQUENCY = tl.constexpr(6)
PRESENCE = tl.constexpr(7)

# Bits of FLAGS
EDITS = tl.constexpr(1)
"""Logits are changed before the choice."""
HIDES = tl.constexpr(2)
"""Only some tokens of the vocabulary are allowed."""
COUNTS = tl.constexpr(4)
"""There are penalties."""

BLOCK = tl.constexpr(256)
"""Logits of a block, as in `cleave.runtime.sampling.blocks`."""
BLOCKS = tl.constexpr(16)
"""Blocks of a program."""
SEEN = tl.constexpr(1 << 30)
"""Set in the count of a token that the prompt or the answer has."""

# Instead of a token, as in `cleave.runtime.sampling.kernel`.
NOT_FINITE = tl.constexpr(-1)
NOTHING_LEFT = tl.constexpr(-2)
