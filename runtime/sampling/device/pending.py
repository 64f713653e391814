"""Tokens that are being sampled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cleave.errors import CleaveError
from cleave.runtime.sampling.device.fields import NOT_FINITE
from cleave.runtime.sampling.device.results import Results
from cleave.runtime.sampling.device.row import SampledRow
from cleave.runtime.sampling.sampler import Sampled, nothing_left, not_finite

Tensor = torch.Tensor


class Pending:
    """What a step samples, on its way to the host."""

    def __init__(self, rows: Sequence[SampledRow], results: Results) -> None:
        self._rows, self._results = rows, results
        self.tokens = results.tokens[: len(rows)]
        """[rows] int64 on the device: the next step's input, as soon as it is launched after this one.

        A row that failed has token 0. The sampler writes here again after `results.IN_FLIGHT` more steps.
        """

    def wait(self) -> Sampled:
        """The tokens and logprobs; waits for the device.

        Raises EngineError for logits that are not numbers, RequestError where a request's parameters
        leave no token.
        """
        tokens, status = self._results.wait(len(self._rows))
        if status.any():
            raise self._failure(status.tolist())
        chosen: list[int] = tokens.tolist()
        return Sampled(chosen, [None] * len(chosen))

    def _failure(self, status: list[int]) -> CleaveError:
        """Why there is no token where the status is not 0."""
        odd = [
            index
            for index, (row, code) in enumerate(zip(self._rows, status, strict=True))
            if code == NOT_FINITE.value or (code and not _edits(row))
        ]
        return not_finite(odd) if odd else nothing_left()


def _edits(row: SampledRow) -> bool:
    return row.state is not None and (row.state.always_edits or row.position < row.state.min_tokens)
