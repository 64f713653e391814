"""Attention of steps that were padded."""

from __future__ import annotations

import torch

from cleave.runtime.engines.engine import Attention

Tensor = torch.Tensor


class FirstRows:
    """Hands the rows of a step to the attention server, and not those that it was padded with."""

    def __init__(self, attention: Attention, rows: int) -> None:
        self._attention, self._rows = attention, rows

    def run(self, layer: int, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
        """See `Attention.run`."""
        q, k, v, given = (tensor[: self._rows] for tensor in (q, k, v, out))
        self._attention.run(layer, q, k, v, given)
        out[self._rows :] = 0
