"""The numbers of a step on the GPU: one buffer there, filled by one asynchronous copy a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Int32 = npt.NDArray[np.int32]

_LINE = 32
"""Sections begin at multiples of this many numbers: 128 bytes."""


@dataclass(frozen=True, slots=True)
class _Staging:
    """Where the host writes a step; `copied` is behind the copy that reads it."""

    host: torch.Tensor
    numbers: Int32
    copied: torch.cuda.Event | None


class StepBuffer:
    """`size` int32 on the device at one address for good, and two pinned buffers that the host fills in
    turn: while the GPU has yet to copy one step's numbers, the next step's are written to the other.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        """Raises torch.OutOfMemoryError where the device has no room."""
        self.device = torch.zeros(size, dtype=torch.int32, device=device)
        self._stagings = [_staging(size, device) for _ in range(2)]
        self._next = 0

    def begin(self) -> Int32:
        """The host's numbers of a new step, to be written; waits for the step before last if it must."""
        staging = self._stagings[self._next]
        if staging.copied is not None:
            staging.copied.synchronize()
        return staging.numbers

    def send(self, used: int) -> None:
        """Copy the first `used` numbers on the current stream."""
        staging = self._stagings[self._next]
        self.device[:used].copy_(staging.host[:used], non_blocking=True)
        if staging.copied is not None:
            staging.copied.record()
        self._next = 1 - self._next


class Sections:
    """Sections that are added behind what a step has used of the buffer."""

    def __init__(self, numbers: Int32, device: torch.Tensor, used: int) -> None:
        self._numbers, self._device = numbers, device
        self.used = used

    def add(self, values: np.ndarray[Any, Any]) -> torch.Tensor:
        """Write `values`; where the device will have them."""
        at = aligned(self.used)
        self.used = at + len(values)
        self._numbers[at : self.used] = values
        return self._device[at : self.used]


def aligned(size: int) -> int:
    """Where the section after one that ends at `size` begins."""
    return -(-size // _LINE) * _LINE


def _staging(size: int, device: torch.device) -> _Staging:
    is_gpu = device.type == "cuda"
    host = torch.zeros(size, dtype=torch.int32, pin_memory=is_gpu)
    return _Staging(host, host.numpy(), _event() if is_gpu else None)


def _event() -> torch.cuda.Event:
    event: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    return event
