"""Where a prompt may be cut when its bits must not depend on the cut, or when its tokens are scored."""

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


def scored_positions(sequence: Sequence, start: int, end: int) -> range:
    """Those from `start` to `end` whose logits score a token of the prompt, where that is wanted.

    Each is scored once, however often a preempted sequence is computed.
    """
    if sequence.sampling is None or sequence.sampling.prompt_logprobs is None:
        return range(0)
    return range(max(start, len(sequence.prompt_logprobs)), min(end, len(sequence.prompt) - 1))


def scored_cut(sequence: Sequence, count: int, rows: int) -> int:
    """How many of its next `count` tokens a sequence may compute if `rows` of them may score its prompt."""
    scored = scored_positions(sequence, sequence.cached, sequence.cached + count)
    return scored[rows] - sequence.cached if len(scored) > rows else count
