"""Log-probabilities of the engine's own distribution: before penalties, masks and temperature."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cleave.runtime.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Logprob:
    """One token as a candidate for one place."""

    logprob: float
    """Natural logarithm of its probability."""
    rank: int
    """1 for the likeliest token; of equals the lowest id comes first."""
    decoded_token: str
    """Its text by itself; a token that is part of a character shows as U+FFFD."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenLogprobs:
    """The token that stands at a place, and the likeliest ones for it."""

    token: int
    logprob: float
    rank: int
    top_tokens: npt.NDArray[np.int64]
    """[n] the likeliest tokens, likeliest first."""
    top_logprobs: npt.NDArray[np.float32]
    """[n] their logprobs."""

    def named(self, tokenizer: Tokenizer) -> dict[int, Logprob]:
        """By token id: the token that stands there first, then the likeliest others."""
        result = {self.token: Logprob(self.logprob, self.rank, tokenizer.text_of(self.token))}
        pairs = zip(self.top_tokens.tolist(), self.top_logprobs.tolist(), strict=True)
        for place, (token, logprob) in enumerate(pairs):
            if token != self.token:
                result[token] = Logprob(logprob, place + 1, tokenizer.text_of(token))
        return result
