"""What a step is told: token ids and logit rows, in device memory that stays where it is."""

from __future__ import annotations

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


class StepInputs:
    """Sends the numbers of a step in one copy, to the same place every time: graphs read them there."""

    def __init__(self, max_tokens: int, device: torch.device) -> None:
        """Room for `max_tokens` token ids and as many logit rows."""
        size = 2 * (max_tokens + _ALIGNED)
        is_gpu = device.type == "cuda"
        self.max_tokens = max_tokens
        self._device = torch.zeros(size, dtype=torch.int64, device=device)
        count = _IN_FLIGHT if is_gpu else 1
        self._staged = [torch.zeros(size, dtype=torch.int64, pin_memory=is_gpu) for _ in range(count)]
        self._numbers = [staged.numpy() for staged in self._staged]
        self._sent = [_event() for _ in range(count if is_gpu else 0)]
        self._next = 0

    def send(
        self, token_ids: npt.NDArray[Any] | Tensor, logit_rows: npt.NDArray[Any], tokens: int, rows: int
    ) -> tuple[Tensor, Tensor]:
        """The step's token ids [tokens] and logit rows [rows] on the device, int64; zero past what is given.

        Token ids that are on the device already are copied there. Raises EngineError where they do not
        fit.
        """
        if max(tokens, rows) > self.max_tokens:
            raise EngineError(
                f"the step has {tokens} tokens and {rows} logit rows; the engine was built for "
                f"{self.max_tokens} of each"
            )
        rows_at = -(-tokens // _ALIGNED) * _ALIGNED
        number = self._next
        self._next = (number + 1) % len(self._staged)
        if self._sent:
            self._sent[number].synchronize()
        numbers = self._numbers[number]
        numbers[:rows_at] = 0
        if not isinstance(token_ids, Tensor):
            numbers[: len(token_ids)] = token_ids
        numbers[rows_at : rows_at + len(logit_rows)] = logit_rows
        numbers[rows_at + len(logit_rows) : rows_at + rows] = 0
        end = rows_at + rows
        self._device[:end].copy_(self._staged[number][:end], non_blocking=True)
        if self._sent:
            self._sent[number].record()
        if isinstance(token_ids, Tensor):
            self._device[: len(token_ids)].copy_(token_ids)
        return self.views(tokens, rows)

    def views(self, tokens: int, rows: int) -> tuple[Tensor, Tensor]:
        """Where a step of this size finds its numbers."""
        rows_at = -(-tokens // _ALIGNED) * _ALIGNED
        return self._device[:tokens], self._device[rows_at : rows_at + rows]


def check_rows(logit_rows: npt.NDArray[np.int64], tokens: int) -> None:
    """Raises EngineError for more rows than the step has; there is nothing to be had from them."""
    if len(logit_rows) > tokens:
        raise EngineError(f"{len(logit_rows)} logit rows were asked of a step of {tokens} tokens")


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]
