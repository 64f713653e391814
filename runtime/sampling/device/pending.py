"""Tokens that are being sampled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cleave.runtime.sampling.device.fields import NOT_FINITE
from cleave.runtime.sampling.device.logprob_kernels import BEST, LOGIT, MOST, RANK, TOP, TOTAL
from cleave.runtime.sampling.device.results import Results
from cleave.runtime.sampling.device.row import SampledRow
from cleave.runtime.sampling.logprobs import TokenLogprobs
from cleave.runtime.sampling.sampler import Sampled, not_finite, nothing_left

Tensor = torch.Tensor


class Pending:
    """What a step samples, on its way to the host."""

    def __init__(self, rows: Sequence[SampledRow], results: Results, vocab: int) -> None:
        self._rows, self._results, self._vocab = rows, results, vocab
        self.tokens = results.tokens[: len(rows)]
        """[rows] int64 on the device: the next step's input, as soon as it is launched after this one.

        A row that failed has token 0. The sampler writes here again after `results.IN_FLIGHT` more steps.
        """

    def wait(self) -> Sampled:
        """The tokens and logprobs, as soon as the device has them; negative instead of a token where the
        logits are not numbers, or the request's parameters leave no token.
        """
        tokens, status, answers = self._results.wait(len(self._rows))
        codes: list[int] = status.tolist()
        logprobs: list[TokenLogprobs | None] = [None] * len(codes)
        for index, row in enumerate(self._rows):
            if row.state is None:
                continue
            if codes[index] and codes[index] != NOT_FINITE.value and not _edits(row):
                codes[index] = NOT_FINITE.value
            if row.state.logprobs is not None and not codes[index]:
                if not math.isfinite(answers[index, TOP.value]):
                    codes[index] = NOT_FINITE.value
                    continue
                logprobs[index] = _logprobs(
                    int(tokens[index]), min(row.state.logprobs, self._vocab), answers[index]
                )
        chosen = [code or token for code, token in zip(codes, tokens.tolist(), strict=True)]
        return Sampled(chosen, logprobs)

    def result(self) -> Sampled:
        """As `wait`. Raises EngineError for logits that are not numbers, RequestError where a request's
        parameters leave no token.
        """
        sampled = self.wait()
        if min(sampled.tokens, default=0) < 0:
            odd = [
                index
                for index, (token, row) in enumerate(zip(sampled.tokens, self._rows, strict=True))
                if token == NOT_FINITE.value or (token < 0 and row.state is None)
            ]
            raise not_finite(odd) if odd else nothing_left()
        return sampled


def _logprobs(token: int, top: int, answer: npt.NDArray[Any]) -> TokenLogprobs:
    """Those of one row; answer [ANSWER] is what the kernels say of it."""
    normal = float(answer[TOP.value]) + math.log(answer[TOTAL.value])
    best, values = (answer[begin : begin + top] for begin in (BEST.value, BEST.value + MOST.value))
    return TokenLogprobs(
        token,
        float(answer[LOGIT.value]) - normal,
        int(answer[RANK.value]),
        best.astype(np.int64),
        (values - normal).astype(np.float32),
    )


def _edits(row: SampledRow) -> bool:
    return row.state is not None and (row.state.always_edits or row.position < row.state.min_tokens)
