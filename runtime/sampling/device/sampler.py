"""The device sampler: the next token of every row, chosen where the logits are."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cleave.runtime.sampling.device.pending import Pending
from cleave.runtime.sampling.device.row import SampledRow
from cleave.runtime.sampling.state import SamplingState

Tensor = torch.Tensor


class DeviceSampler:
    """Chooses tokens as `cleave.runtime.sampling.sampler.Sampler` does, on the device and without waiting.

    What it needs to know of a sequence's tokens lies on the device, and grows there by each token that is
    sampled. It is made anew from the host's `SamplingState` where a row's position does not follow that of
    the sequence's last row: then the host has all tokens before it.
    """

    def __init__(self, vocab: int, device: torch.device | str, max_sequences: int) -> None:
        """For logits of `vocab` columns and steps of up to `max_sequences` rows."""
        self._vocab, self._device = vocab, torch.device(device)
        self._max_sequences = max_sequences

    def takes(self, state: SamplingState | None) -> bool:
        """Whether rows of such a request can be sampled here; others need the host between two steps."""
        return state is None

    def sample(self, logits: Tensor, rows: Sequence[SampledRow]) -> Pending:
        """A token for each of the first len(rows) of logits [at least rows, vocab] float32.

        Only launches kernels on the current stream; the logits may be overwritten by what is launched
        after it. Every state must be one that the sampler `takes`.
        """
        best, tokens = logits[: len(rows)].max(dim=-1)
        return Pending(tokens, best)

    def forget(self, sequence: int) -> None:
        """The sequence has ended; nothing happens where the sampler does not know it."""
