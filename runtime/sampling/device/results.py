"""Where a step's tokens land: on the device for the next step, and in pinned memory for the host."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

Tensor = torch.Tensor
IN_FLIGHT = 4
"""Steps whose results may be on their way at once."""


class Results:
    """Memory for the results of one step; a sampler has IN_FLIGHT of them and uses them in turn."""

    def __init__(self, rows: int, device: torch.device) -> None:
        is_gpu = device.type == "cuda"
        packed = torch.zeros(2, rows, dtype=torch.int64, device=device)
        self.tokens, self.status = packed[0], packed[1]
        """[rows] int64 on the device: the tokens, 0 for a row that failed; NOT_FINITE, NOTHING_LEFT or 0."""
        self._packed = packed
        self._host = torch.zeros(2, rows, dtype=torch.int64, pin_memory=is_gpu)
        self._arrived = torch.cuda.Event() if is_gpu else None  # type: ignore[no-untyped-call]

    def send(self) -> None:
        """Copy them to the host, behind what is launched so far."""
        self._host.copy_(self._packed, non_blocking=True)
        if self._arrived is not None:
            self._arrived.record()

    def wait(self, rows: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Tokens [rows] and status [rows], as soon as they are here."""
        if self._arrived is not None:
            self._arrived.synchronize()
        numbers = self._host.numpy()
        return numbers[0, :rows], numbers[1, :rows]
