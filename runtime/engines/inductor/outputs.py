"""What a step leaves on the device, the likeliest token of every row beside the logits, and its way home."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy.typing as npt
import torch

from cleave.runtime.engines.engine import DeviceOutput
from cleave.runtime.triton_launch import launch

Tensor = torch.Tensor
_PROGRAMS = 8
"""Programs a multiprocessor that share the logits of a step, about."""
_MOST_SPLITS = 64
_BLOCK = 1024
"""Logits that a program looks at at a time; a part of a row is no smaller."""


class StepOutputs:
    """Where every step leaves its likeliest tokens: the same place every time, as graphs need it."""

    def __init__(self, sampled: Tensor) -> None:
        """`sampled` [max_rows] int64 is where the next step looks for tokens: `StepInputs.sampled`."""
        self._sampled = sampled
        self._best = torch.empty(len(sampled), device=sampled.device)
        self._search = LikeliestSearch(len(sampled), sampled.device) if _has_kernels(sampled.device) else None

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


class LikeliestSearch:
    """Finds the likeliest tokens with a kernel of its own.

    That of torch takes one multiprocessor for a row, and a decode step has few rows and a large vocabulary.
    """

    def __init__(self, max_rows: int, device: torch.device) -> None:
        """For up to `max_rows` rows at a time, on a GPU, or in Triton's interpreter."""
        self._values = torch.empty(max_rows, _MOST_SPLITS, device=device)
        self._places = torch.empty(max_rows, _MOST_SPLITS, dtype=torch.int32, device=device)
        self._arrived = torch.zeros(max_rows, dtype=torch.int32, device=device)
        is_gpu = device.type == "cuda"
        processors = torch.cuda.get_device_properties(device).multi_processor_count if is_gpu else 1
        self._programs = _PROGRAMS * processors

    def __call__(self, logits: Tensor, best: Tensor, tokens: Tensor) -> None:
        """Write the highest of each row of logits [rows, vocab] float32 to best [rows] float32, and where it
        is to tokens [rows] int64: the first of several equals. What is no number counts as the highest.
        """
        from cleave.runtime.engines.inductor.likeliest_kernel import likeliest_kernel

        rows, vocab = logits.shape
        splits = max(1, min(_MOST_SPLITS, self._programs // rows, vocab // _BLOCK))
        launch(
            likeliest_kernel,
            (rows, splits),
            logits,
            best,
            tokens,
            self._values,
            self._places,
            self._arrived,
            logits.stride(0),
            vocab,
            splits,
            MOST=_MOST_SPLITS,
            BLOCK=_BLOCK,
            num_warps=4,
        )


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


def _has_kernels(device: torch.device) -> bool:
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None
