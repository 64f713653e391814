"""What a step leaves on the device, the likeliest token of every row beside the logits, and its way home."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch

from cleave.runtime.engines.engine import DeviceOutput
from cleave.runtime.engines.inductor.likeliest import LikeliestSearch, has_search

Tensor = torch.Tensor


class StepOutputs:
    """Where every step leaves its likeliest tokens: the same place every time, as graphs need it."""

    def __init__(self, sampled: Tensor) -> None:
        """`sampled` [max_rows] int64 is where the next step looks for tokens: `StepInputs.sampled`."""
        self._sampled = sampled
        self._best = torch.empty(len(sampled), device=sampled.device)
        self._search = LikeliestSearch(len(sampled), sampled.device) if has_search(sampled.device) else None

    def choose(self, logits: Tensor) -> DeviceOutput:
        """The likeliest token of each row of logits [rows, vocab] float32; one launch.

        It is a token of the vocabulary even where the logits are no numbers, so that the next step can run.
        """
        rows = len(logits)
        best, likeliest = self._best[:rows], self._sampled[:rows]
        if self._search is None:
            torch.max(logits, dim=-1, out=(best, likeliest))
        else:
            self._search(logits, best, likeliest)
        return DeviceOutput(logits, likeliest, best)


class HostLogits:
    """Logits in host memory that the next step's overwrite; pinned where they come from a GPU."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._is_pinned = device.type == "cuda"
        self._rows = torch.empty(0, vocab_size)

    def fetch(self, logits: Tensor) -> npt.NDArray[Any]:
        """[rows, vocab] float32, once the device has them."""
        rows = len(logits)
        if rows > len(self._rows):
            self._rows = torch.empty(logits.shape, pin_memory=self._is_pinned)
        self._rows[:rows].copy_(logits)
        result: npt.NDArray[Any] = self._rows[:rows].numpy()
        return result


def first_rows(output: DeviceOutput, rows: int) -> DeviceOutput:
    """Without the rows that pad the step."""
    return DeviceOutput(output.logits[:rows], output.likeliest[:rows], output.best[:rows])
