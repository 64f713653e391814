"""The search for the likeliest token of every row of logits, on a GPU."""

from __future__ import annotations

import importlib.util

import torch

from cleave.runtime.triton_launch import launch

Tensor = torch.Tensor
_PROGRAMS = 8
"""Programs a multiprocessor that share the logits of a step, about."""
_MOST_SPLITS = 64
_BLOCK = 1024
"""Logits that a program looks at at a time; a part of a row is no smaller."""


class LikeliestSearch:
    """Finds the likeliest tokens with a kernel of its own.

    Several programs share a row: a decode step has few rows and a large vocabulary. Times are in
    docs/gpu.md.
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


def has_search(device: torch.device) -> bool:
    """Whether it can run there outside tests."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None
