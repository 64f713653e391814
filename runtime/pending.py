"""Tokens on their way from the device to the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from cleave.runtime.engines.engine import DeviceOutput
from cleave.runtime.logit_rows import LogitRows
from cleave.runtime.sampling.sampler import Sampled, not_finite
from cleave.runtime.sampling.state import SamplingState

_UNDER_WAY = 3
"""Steps whose tokens are being fetched: the one that is waited for, the one that runs, and the next."""


class Pending(Protocol):
    """What a launched step samples."""

    @property
    def tokens(self) -> Any:
        """[rows] int64, a torch tensor on the device, for the step that is launched next."""

    def wait(self) -> Sampled:
        """Wait for the device, and give the tokens; negative where the logits are no numbers."""

    def result(self) -> Sampled:
        """As `wait`. Raises EngineError for logits that are no numbers, RequestError where a request's
        parameters leave no token.
        """


class DeviceTokens(Protocol):
    """Chooses the tokens of launched steps on the device."""

    @property
    def draws(self) -> bool:
        """Whether it draws tokens too; else the host does for every request that is not greedy."""

    def takes(self, state: SamplingState | None, *, in_lockstep: bool = False) -> bool:
        """Whether it can choose for such a request; others need the host between logits and token.

        `in_lockstep`: where the host has all tokens before a step is run, and knows what may come next.
        """

    def choose(self, output: DeviceOutput, wanted: LogitRows) -> Pending:
        """Start it on the current stream, behind the step, for the sampled rows of `wanted`."""

    def forget(self, sequence: int) -> None:
        """A sequence has ended, or its token was lost: what is kept of its tokens holds no more."""

    def close(self) -> None:
        """Give back memory; nothing is chosen afterwards."""


class LikeliestTokens:
    """The tokens that the engine itself has chosen, copied to pinned host memory; see `DeviceTokens`."""

    def __init__(self, device: str, rows: int) -> None:
        """For an engine on `device`, "cpu" or "cuda:0", and steps that sample up to `rows` rows."""
        self._buffers = [_Buffer(device, rows) for _ in range(_UNDER_WAY)]
        self._next = 0

    @property
    def draws(self) -> bool:
        """See `DeviceTokens`."""
        return False

    def takes(self, state: SamplingState | None, *, in_lockstep: bool = False) -> bool:
        """See `DeviceTokens`."""
        return state is None

    def choose(self, output: DeviceOutput, wanted: LogitRows) -> Pending:
        """See `DeviceTokens`; at most two steps before may not have been waited for."""
        buffer = self._buffers[self._next]
        self._next = (self._next + 1) % _UNDER_WAY
        buffer.fill(output)
        return _Fetched(output.likeliest, buffer, len(output.likeliest))

    def forget(self, sequence: int) -> None:
        """See `DeviceTokens`: nothing is kept."""

    def close(self) -> None:
        """See `DeviceTokens`."""
        self._buffers.clear()


class _Buffer:
    """The tokens of one step on the host, and the event behind the copy."""

    def __init__(self, device: str, rows: int) -> None:
        import torch

        is_gpu = torch.device(device).type == "cuda"
        self._tokens = torch.empty(rows, dtype=torch.int64, pin_memory=is_gpu)
        self._best = torch.empty(rows, dtype=torch.float32, pin_memory=is_gpu)
        self._copied = torch.cuda.Event() if is_gpu else None  # type: ignore[no-untyped-call]

    def fill(self, output: DeviceOutput) -> None:
        rows = len(output.likeliest)
        self._tokens[:rows].copy_(output.likeliest, non_blocking=True)
        self._best[:rows].copy_(output.best, non_blocking=True)
        if self._copied is not None:
            self._copied.record()

    def read(self, rows: int) -> list[int]:
        if self._copied is not None:
            self._copied.synchronize()
        is_finite = np.isfinite(self._best.numpy()[:rows])
        tokens: list[int] = np.where(is_finite, self._tokens.numpy()[:rows], -1).tolist()
        return tokens


@dataclass(frozen=True, slots=True)
class _Fetched:
    """See `Pending`."""

    tokens: Any
    buffer: _Buffer
    rows: int

    def wait(self) -> Sampled:
        """See `Pending`."""
        return Sampled(self.buffer.read(self.rows), [None] * self.rows)

    def result(self) -> Sampled:
        """See `Pending`."""
        sampled = self.wait()
        odd = [row for row, token in enumerate(sampled.tokens) if token < 0]
        if odd:
            raise not_finite(odd)
        return sampled
