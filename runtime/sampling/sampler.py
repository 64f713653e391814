"""The sampler: the next token of every row of a batch, and logprobs where they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cleave.errors import EngineError, RequestError
from cleave.runtime.sampling.logprobs import TokenLogprobs
from cleave.runtime.sampling.state import SamplingState

Logits = npt.NDArray[np.float32]
_Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Sampled:
    """What came of the rows, in their order."""

    tokens: list[int]
    logprobs: list[TokenLogprobs | None]


def greedy(logits: _Array) -> npt.NDArray[np.int64]:
    """The likeliest token of each row; the lowest id of equals. logits [rows, vocab] float32 -> [rows].

    Raises EngineError for logits that are not numbers: an engine that overflowed.
    """
    tokens: npt.NDArray[np.int64] = logits.argmax(axis=-1)
    best = logits[np.arange(len(logits)), tokens]  # argmax finds a NaN before any number
    if not np.isfinite(best).all():
        raise _not_finite(np.flatnonzero(~np.isfinite(best)).tolist())
    return tokens


class Sampler:
    """Chooses tokens; what it knows of a request is in the request's `SamplingState`."""

    def __init__(self) -> None:
        # Here, since it brings in numba: whoever only imports cleave does not wait for that.
        from cleave.runtime.sampling import kernel

        self._kernel = kernel
        self._scratch = np.empty(0, np.float32)

    def sample(self, logits: Logits, states: Sequence[SamplingState | None]) -> Sampled:
        """A token for each row; a row whose state is None gets the likeliest.

        logits [rows, vocab] float32, C-contiguous; rows of requests that edit theirs are overwritten.
        Raises EngineError for logits that are not numbers, RequestError where a request's parameters
        leave no token.
        """
        if not any(states):
            return Sampled(greedy(logits).tolist(), [None] * len(states))
        raw: list[Logits | None] = [None] * len(states)
        for row, state in enumerate(states):
            if state is None:
                continue
            if state.hides and not np.isfinite(logits[row].max()):
                raise _not_finite([row])
            if state.logprobs is not None:
                raw[row] = logits[row].copy() if state.edits else logits[row]
            if state.edits:
                state.edit(logits[row])
        tokens = self._choose(logits, states)
        logprobs: list[TokenLogprobs | None] = [None] * len(states)
        for row, (state, before) in enumerate(zip(states, raw, strict=True)):
            if state is not None and state.logprobs is not None and before is not None:
                logprobs[row] = self.logprobs(before, tokens[row], state.logprobs)
        return Sampled(tokens, logprobs)

    def logprobs(self, row: Logits, token: int, top: int) -> TokenLogprobs:
        """The logprob of `token`, and the `top` largest. row [vocab] float32 logits.

        Raises EngineError for logits that are not numbers.
        """
        count = min(top, len(row))
        tokens, values = np.empty(count, np.int64), np.empty(count, np.float32)
        normal = np.empty(1)
        if self._kernel.rank(row, tokens, values, normal, self._room(len(row))) == self._kernel.NOT_FINITE:
            raise _not_finite([0])
        logprob = float(row[token]) - float(normal[0])
        return TokenLogprobs(
            token,
            logprob,
            int(self._kernel.rank_of(row, token)),
            tokens,
            (values - normal).astype(np.float32),
        )

    def _choose(self, logits: Logits, states: Sequence[SamplingState | None]) -> list[int]:
        settings = np.array([_LIKELIEST if state is None else state.settings for state in states])
        keys = np.array(
            [(0, 0, 0) if state is None else (*state.key, state.generated) for state in states], np.uint64
        )
        tokens = np.empty(len(states), np.int64)
        self._kernel.choose(
            logits,
            np.arange(len(states)),
            settings[:, 0].astype(np.float32),
            settings[:, 1].astype(np.int64),
            np.ascontiguousarray(settings[:, 2]),
            np.ascontiguousarray(settings[:, 3]),
            keys,
            tokens,
            self._room(logits.shape[1]),
        )
        if tokens.min() < 0:
            if self._kernel.NOT_FINITE in tokens:
                raise _not_finite(np.flatnonzero(tokens == self._kernel.NOT_FINITE).tolist())
            raise RequestError(
                "no token is left: the request's allowed_token_ids, bad_words, min_tokens and structured "
                "output exclude each other"
            )
        return tokens.tolist()

    def _room(self, vocab: int) -> _Array:
        needed = self._kernel.scratch_floats(vocab)
        if len(self._scratch) < needed:
            self._scratch = np.empty(needed, np.float32)
        return self._scratch


_LIKELIEST = (0.0, 0, 1.0, 0.0)


def _not_finite(rows: list[int]) -> EngineError:
    return EngineError(f"the engine's logits of rows {rows} are not finite; its dtype may be too narrow")
