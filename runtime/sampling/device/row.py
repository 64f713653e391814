"""What the device sampler is told of one row of logits."""

from __future__ import annotations

from typing import NamedTuple

from cleave.runtime.sampling.state import SamplingState


class SampledRow(NamedTuple):
    """Whose logits a row has, and for which of its tokens."""

    sequence: int
    """The sequence's id."""
    state: SamplingState | None
    """How it is sampled; None for the likeliest token and nothing else."""
    position: int
    """The place of the token in the answer, from 0. It is one more than `state.generated` where the token
    before it is still on its way from the device."""
