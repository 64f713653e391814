"""Where a prompt may be cut when its bits must not depend on the cut."""

from __future__ import annotations

from cleave.runtime.sequence import Sequence

LEAST_ROWS = 3
"""Rows of a step that are enough for some chunk of any prompt."""


def fixed_cut(sequence: Sequence, count: int) -> int:
    """How many of its next `count` tokens a sequence may compute in one step; 0: none.

    An attention backend may compute a chunk of one token otherwise than a longer one. So each token is
    computed as when its sequence runs alone in large steps: those of a prompt never one by one, and those
    that were generated before a preemption never together.
    """
    left = len(sequence.prompt) - sequence.cached
    if left <= 0:
        return min(count, 1)
    count = min(count, left)
    if count and left - count == 1:
        count -= 1
    return 0 if count == 1 < left else count
