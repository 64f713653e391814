"""Where a step's tokens land: on the device for the next step, and in pinned memory for the host."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch

from cleave.runtime.sampling.device.logprob_kernels import ANSWER

Tensor = torch.Tensor
_Array = npt.NDArray[Any]
IN_FLIGHT = 4
"""Steps whose results may be on their way at once."""
_ALIGNED = 2
"""Numbers of eight bytes; Triton compiles a kernel once more for a tensor not aligned to sixteen bytes."""


class Results:
    """Memory for the results of one step; a sampler has IN_FLIGHT of them and uses them in turn."""

    def __init__(self, rows: int, device: torch.device) -> None:
        is_gpu = device.type == "cuda"
        width = -(-rows // _ALIGNED) * _ALIGNED
        packed = torch.zeros(2, width, dtype=torch.int64, device=device)
        self.tokens, self.status = packed[0, :rows], packed[1, :rows]
        """[rows] int64 on the device: the tokens, 0 for a row that failed; NOT_FINITE, NOTHING_LEFT or 0."""
        self.answers = torch.zeros(rows, ANSWER.value, dtype=torch.float64, device=device)
        """[rows, ANSWER] on the device: what `logprob_kernels` say of rows that have logprobs."""
        self._packed = packed
        self._host = torch.zeros(2, width, dtype=torch.int64, pin_memory=is_gpu)
        self._host_answers = torch.zeros(rows, ANSWER.value, dtype=torch.float64, pin_memory=is_gpu)
        self._arrived = torch.cuda.Event() if is_gpu else None  # type: ignore[no-untyped-call]

    def send(self, rows: int, *, logprobs: bool) -> None:
        """Copy those of `rows` rows to the host, behind what is launched so far."""
        self._host.copy_(self._packed, non_blocking=True)
        if logprobs:
            self._host_answers[:rows].copy_(self.answers[:rows], non_blocking=True)
        if self._arrived is not None:
            self._arrived.record()

    def wait(self, rows: int) -> tuple[_Array, _Array, _Array]:
        """Tokens [rows] and status [rows] int64, answers [rows, ANSWER] float64, as soon as they are here."""
        if self._arrived is not None:
            self._arrived.synchronize()
        numbers = self._host.numpy()
        return numbers[0, :rows], numbers[1, :rows], self._host_answers.numpy()[:rows]
