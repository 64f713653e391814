"""Tokens that are being sampled."""

from __future__ import annotations

import torch

from cleave.errors import EngineError
from cleave.runtime.sampling.sampler import Sampled

Tensor = torch.Tensor


class Pending:
    """What a step samples, on its way to the host."""

    def __init__(self, tokens: Tensor, best: Tensor) -> None:
        self.tokens = tokens
        """[rows] int64 on the device: the next step's input, as soon as it is launched after this one.

        Overwritten by the sampling of the step after next. A row that failed has token 0.
        """
        self._best = best

    def wait(self) -> Sampled:
        """The tokens and logprobs; waits for the device.

        Raises EngineError for logits that are not numbers, RequestError where a request's parameters
        leave no token.
        """
        rows = torch.nonzero(~torch.isfinite(self._best)).flatten().tolist()
        if rows:
            raise EngineError(
                f"the engine's logits of rows {rows} are not finite; its dtype may be too narrow"
            )
        tokens: list[int] = self.tokens.tolist()
        return Sampled(tokens, [None] * len(tokens))
