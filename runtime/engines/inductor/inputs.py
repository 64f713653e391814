"""What a step is told: token ids and logit rows, in device memory that stays where it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cleave.errors import EngineError

Tensor = torch.Tensor
_IN_FLIGHT = 4
"""Steps that may be under way before the host waits for the copy of the oldest."""
_ALIGNED = 2
"""Numbers of eight bytes; Inductor copies inputs that are not aligned to sixteen bytes."""


@dataclass(frozen=True, slots=True)
class StepNumbers:
    """Where a step of some size finds its numbers; all of it int64 on the device."""

    known: Tensor
    """Sampled tokens, and behind them the step's own token ids."""
    places: Tensor
    """[tokens] where in `known` the id of each token is."""
    logit_rows: Tensor
    """[rows]"""
    gathered: Tensor
    """[tokens] room for the token ids."""

    def token_ids(self) -> Tensor:
        """[tokens]; one launch."""
        return torch.index_select(self.known, 0, self.places, out=self.gathered)


class StepInputs:
    """Sends the numbers of a step in one copy, to the same place every time: graphs read them there.

    A token id that the host does not know yet is a row of `sampled`, where an earlier step leaves it.
    """

    def __init__(self, max_tokens: int, device: torch.device) -> None:
        """Room for `max_tokens` token ids, as many logit rows, and as many sampled tokens."""
        self.max_tokens = max_tokens
        self._first = -(-max_tokens // _ALIGNED) * _ALIGNED
        size = 3 * (max_tokens + _ALIGNED)
        is_gpu = device.type == "cuda"
        self._device = torch.zeros(self._first + size, dtype=torch.int64, device=device)
        self._gathered = torch.empty(max_tokens, dtype=torch.int64, device=device)
        self.sampled = self._device[:max_tokens]
        """[max_tokens] tokens that the last step sampled."""
        count = _IN_FLIGHT if is_gpu else 1
        self._staged = [torch.zeros(size, dtype=torch.int64, pin_memory=is_gpu) for _ in range(count)]
        self._numbers = [staged.numpy() for staged in self._staged]
        self._sent = [_event() for _ in range(count if is_gpu else 0)]
        self._next = 0

    def send(
        self,
        token_ids: npt.NDArray[Any] | Tensor,
        logit_rows: npt.NDArray[Any],
        tokens: int,
        rows: int,
        sampled: Tensor | None = None,
    ) -> StepNumbers:
        """Send token ids and logit rows, followed by zeros up to `tokens` and `rows`.

        A token id of -1 - r is row r of `sampled` [n], which is copied on the device unless it lies in
        place already; token ids that are on the device are all taken from there. Raises EngineError where
        the step does not fit.
        """
        if max(tokens, rows) > self.max_tokens:
            raise EngineError(
                f"the step has {tokens} tokens and {rows} logit rows; the engine was built for "
                f"{self.max_tokens} of each"
            )
        if isinstance(token_ids, Tensor):
            sampled, token_ids = token_ids, -1 - np.arange(len(token_ids))
        if sampled is not None and sampled.data_ptr() != self.sampled.data_ptr():
            self.sampled[: len(sampled)].copy_(sampled)
        number = self._next
        self._next = (number + 1) % len(self._staged)
        if self._sent:
            self._sent[number].synchronize()
        given, places_at, rows_at, end = len(token_ids), *_layout(tokens, rows)
        numbers = self._numbers[number]
        numbers[:given] = token_ids
        numbers[given:places_at] = 0
        places = numbers[places_at : places_at + tokens]
        places[:] = np.arange(self._first, self._first + tokens)
        np.copyto(places[:given], -1 - token_ids, where=token_ids < 0)
        numbers[rows_at : rows_at + len(logit_rows)] = logit_rows
        numbers[rows_at + len(logit_rows) : end] = 0
        self._device[self._first : self._first + end].copy_(self._staged[number][:end], non_blocking=True)
        if self._sent:
            self._sent[number].record()
        return self.views(tokens, rows)

    def views(self, tokens: int, rows: int) -> StepNumbers:
        """Where a step of this size finds its numbers."""
        places_at, rows_at, end = (self._first + at for at in _layout(tokens, rows))
        return StepNumbers(
            self._device[: self._first + tokens],
            self._device[places_at : places_at + tokens],
            self._device[rows_at:end],
            self._gathered[:tokens],
        )


def check_rows(logit_rows: npt.NDArray[np.int64], tokens: int) -> None:
    """Raises EngineError for more rows than the step has; there is nothing to be had from them."""
    if len(logit_rows) > tokens:
        raise EngineError(f"{len(logit_rows)} logit rows were asked of a step of {tokens} tokens")


def _layout(tokens: int, rows: int) -> tuple[int, int, int]:
    """Behind the token ids: where the places and the logit rows begin, and where those end."""
    places_at = -(-tokens // _ALIGNED) * _ALIGNED
    return places_at, 2 * places_at, 2 * places_at + rows


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]
