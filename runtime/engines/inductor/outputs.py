"""What a step leaves on the device: the likeliest token of every row beside the logits."""

from __future__ import annotations

import torch

from cleave.runtime.engines.engine import DeviceOutput

Tensor = torch.Tensor


class StepOutputs:
    """Where every step leaves its likeliest tokens: the same place every time, as graphs need it."""

    def __init__(self, sampled: Tensor) -> None:
        """`sampled` [max_rows] int64 is where the next step looks for tokens: `StepInputs.sampled`."""
        self._sampled = sampled
        self._best = torch.empty(len(sampled), device=sampled.device)

    def choose(self, logits: Tensor) -> DeviceOutput:
        """The likeliest token of each row of logits [rows, vocab] float32; one launch.

        It is a token of the vocabulary even where the logits are no numbers, so that the next step can run.
        """
        rows = len(logits)
        best, likeliest = self._best[:rows], self._sampled[:rows]
        torch.max(logits, dim=-1, out=(best, likeliest))
        return DeviceOutput(logits, likeliest, best)


def first_rows(output: DeviceOutput, rows: int) -> DeviceOutput:
    """Without the rows that pad the step."""
    return DeviceOutput(output.logits[:rows], output.likeliest[:rows], output.best[:rows])
