"""What the runtime needs of a device sampler; it can be imported where there is no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from cleave.runtime.pending import Pending
from cleave.runtime.sampling.device.row import SampledRow
from cleave.runtime.sampling.state import SamplingState


class TokenSampler(Protocol):
    """See `cleave.runtime.sampling.device.sampler.DeviceSampler`."""

    def takes(self, state: SamplingState | None, *, in_lockstep: bool = False) -> bool:
        """Whether rows of such a request can be sampled on the device; see there for `in_lockstep`."""

    def sample(self, logits: Any, rows: Sequence[SampledRow]) -> Pending:
        """Start to sample a token for each row of a torch tensor [at least rows, vocab] float32."""

    def forget(self, sequence: int) -> None:
        """The sequence has ended, or its token was lost: what is kept of its tokens holds no more."""

    def close(self) -> None:
        """Give the memory back; nothing is sampled afterwards."""
