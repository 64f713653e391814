"""The numbers of rows as the kernels read them: packed, and sent where they differ from the last step's."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from cleave.runtime.sampling.device import fields
from cleave.runtime.sampling.device.row import SampledRow
from cleave.runtime.sampling.state import SamplingState

Tensor = torch.Tensor
_FAR = 127.0
"""As in `cleave.runtime.sampling.kernel`."""
_IN_FLIGHT = 4
"""Copies that may be under way before the host waits for the oldest."""
_KEYS = 1 << 64


class Parameters:
    """[rows, WIDTH] numbers on the device, at one address for good, and pinned memory to fill them from."""

    def __init__(self, rows: int, vocab: int, device: torch.device) -> None:
        is_gpu = device.type == "cuda"
        width, half = int(fields.WIDTH.value), int(fields.HALF.value)
        shape = (rows, width)
        packed = torch.zeros(shape, dtype=torch.int64, device=device)
        self.ints = packed[:, :half]
        """The int64 fields of each row."""
        self.reals = packed.view(torch.float64)[:, half:]
        """The float64 fields of each row."""
        self._vocab, self._packed = vocab, packed
        count = _IN_FLIGHT if is_gpu else 1
        self._staged = [torch.zeros(shape, dtype=torch.int64, pin_memory=is_gpu) for _ in range(count)]
        self._sent = [_event() for _ in range(count if is_gpu else 0)]
        self._next = 0
        self._known: weakref.WeakKeyDictionary[SamplingState, npt.NDArray[np.int64]]
        self._known = weakref.WeakKeyDictionary()
        self._likeliest = packed_row(None, vocab)

    def send(self, rows: Sequence[SampledRow], slots: Sequence[int]) -> None:
        """Put the rows' numbers on the device."""
        number = self._next
        self._next = (number + 1) % len(self._staged)
        if self._sent:
            self._sent[number].synchronize()
        staged = self._staged[number][: len(rows)]
        numbers = staged.numpy()
        np.stack([self._numbers(row) for row in rows], out=numbers)
        numbers[:, fields.SLOT.value] = slots
        numbers[:, fields.POSITION.value] = [row.position for row in rows]
        self._packed[: len(rows)].copy_(staged, non_blocking=True)
        if self._sent:
            self._sent[number].record()

    def _numbers(self, row: SampledRow) -> npt.NDArray[np.int64]:
        if row.state is None:
            return self._likeliest
        known = self._known.get(row.state)
        if known is None:
            known = self._known[row.state] = packed_row(row.state, self._vocab)
        return known


def packed_row(state: SamplingState | None, vocab: int) -> npt.NDArray[np.int64]:
    """[WIDTH] the numbers of a state, all but for slot and position."""
    numbers = np.zeros(fields.WIDTH.value, np.int64)
    half = int(fields.HALF.value)
    ints, reals = numbers[:half], numbers[half:].view(np.float64)
    ints[fields.LOGPROBS.value] = -1
    reals[fields.TOP_P.value] = 1.0
    reals[fields.MIN_P.value] = -math.inf
    if state is None:
        return numbers
    scale, top_k, top_p, min_p = state.settings
    scale = float(np.float32(scale))
    flags = fields.EDITS.value * state.always_edits | fields.HIDES.value * state.hides
    ints[fields.FLAGS.value] = flags | fields.COUNTS.value * (state.counts is not None)
    ints[fields.KEY.value], ints[fields.STREAM.value] = (_signed(number) for number in state.key)
    ints[fields.MIN_TOKENS.value] = state.min_tokens
    if state.logprobs is not None:
        ints[fields.LOGPROBS.value] = state.logprobs
    penalties = (fields.REPETITION, fields.FREQUENCY, fields.PRESENCE)
    for field, penalty in zip(penalties, state.penalties, strict=True):
        reals[field.value] = penalty
    if scale == 0.0:
        return numbers
    ints[fields.TOP_K.value] = kept_by_top_k(top_k, vocab)
    reals[fields.SCALE.value] = scale
    reals[fields.FAR.value] = _FAR / scale
    reals[fields.TOP_P.value] = top_p
    reals[fields.DEPTH.value] = (1.0 + math.log2(vocab / max(1.0 - (top_p or 0.0), 1e-30))) / scale
    if min_p:
        reals[fields.MIN_P.value] = math.log2(min_p) / scale
    return numbers


def kept_by_top_k(top_k: int | None, vocab: int) -> int:
    """How many tokens top-k keeps; 0 for all of them, however many more it asks for."""
    return top_k if top_k is not None and 0 < top_k < vocab else 0


def _signed(number: int) -> int:
    """The int64 with the bits of a uint64."""
    return (number + _KEYS // 2) % _KEYS - _KEYS // 2


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]
