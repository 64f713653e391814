"""What FlashInfer's kernels take, and which steps they are faster for. It need not be installed for this."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cleave.kvcache.spec import AttentionSpec
from cleave.kvcache.step import StepPlan

DTYPES = ("float16", "bfloat16")
HEAD_DIMS = (64, 128, 256)

# On one H200 FlashInfer's kernels took 12 to 17 % less time of the GPU than Triton's over prompts of 2,048
# and 8,192 tokens, whose rows see 1,024 and 4,096 keys on average. Where rows saw 500 or 256, four chunks and
# 16 prompts, they took from 3 % less (without grouped heads) to 17 % more. Nothing was measured in between.
LEAST_KEYS = 1024
"""Keys that the average row of the chunks of a step sees, in the layer that sees fewest."""
# They cost the host 60 to 90 us more in each layer, and about a millisecond more in `plan`; steps of few rows
# wait for the host as they are, however long the histories.
MOST_SMALL = 512
"""Rows of the chunks of a small step, which is Triton's."""


def lacking(specs: Sequence[AttentionSpec]) -> int | None:
    """A head_dim of these layers that FlashInfer has no kernels for; None where there is none."""
    return next((spec.head_dim for spec in specs if spec.head_dim not in HEAD_DIMS), None)


def reach(specs: Sequence[AttentionSpec], max_position: int) -> int:
    """The most keys that a row can see, in the layer that sees fewest."""
    return min(min(spec.window or max_position, max_position) for spec in specs)


def is_faster(step: StepPlan, reach: int) -> bool:
    """Whether chunks of more than one token are FlashInfer's in this step, of layers with that reach."""
    counts = np.diff(step.offsets)
    seen = step.positions[np.repeat(counts > 1, counts)] + 1
    return len(seen) > MOST_SMALL and float(np.minimum(seen, reach).mean()) >= LEAST_KEYS
