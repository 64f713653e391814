"""The sampler: the next token of every row of a batch, and logprobs where they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cleave.errors import CleaveError, EngineError, RequestError
from cleave.runtime.sampling.logprobs import TokenLogprobs
from cleave.runtime.sampling.state import SamplingState
from cleave.threads import physical_cores

Logits = npt.NDArray[np.float32]
_Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Sampled:
    """What came of the rows, in their order."""

    tokens: list[int]
    logprobs: list[TokenLogprobs | None]


class Sampler:
    """Chooses tokens; what it knows of a request is in the request's `SamplingState`.

    Rows are divided among threads where that is worth it. Any division gives the same tokens.
    """

    def __init__(self, threads: int | None = None) -> None:
        """`threads` at most; None: one for each physical core."""
        # Here, since it brings in numba: whoever only imports cleave does not wait for that.
        from cleave.runtime.sampling import kernel

        self._kernel = kernel
        self._threads = threads or physical_cores()
        self._pool = ThreadPoolExecutor(self._threads - 1, "cleave-sampler") if self._threads > 1 else None
        self._last: list[SamplingState | None] = []
        self._arrays = (np.empty((0, 4)), np.empty((0, 3), np.uint64))
        self._scratch: list[_Array] = [np.empty(0, np.float32) for _ in range(self._threads)]

    def sample(self, logits: Logits, states: Sequence[SamplingState | None]) -> Sampled:
        """A token for each row; a row whose state is None gets the likeliest.

        logits [rows, vocab] float32, C-contiguous; rows of requests that edit theirs are overwritten.
        Raises EngineError for logits that are not numbers, RequestError where a request's parameters
        leave no token.
        """
        raw = [
            self._prepare(row, state, logits[row])
            for row, state in enumerate(states)
            if state is not None and state.is_special
        ]
        tokens = self._choose(logits, states)
        logprobs: list[TokenLogprobs | None] = [None] * len(states)
        wanted = [before for before in raw if before is not None]

        def rank(part: int, begin: int, end: int) -> None:
            for row, before, top in wanted[begin:end]:
                logprobs[row] = self.logprobs(before, tokens[row], top, part)

        if wanted:
            self._share(len(wanted), logits.shape[1], rank)
        return Sampled(tokens, logprobs)

    def _prepare(self, row: int, state: SamplingState, logits: Logits) -> tuple[int, Logits, int] | None:
        """Edit a row; gives back what its logprobs need, where they are wanted: row, logits, how many."""
        if state.hides and not np.isfinite(logits.max()):
            raise not_finite([row])
        edits = state.edits
        wanted = None
        if state.logprobs is not None:
            wanted = (row, logits.copy() if edits else logits, state.logprobs)
        if edits:
            state.edit(logits)
        return wanted

    def logprobs(self, row: Logits, token: int, top: int, part: int = 0) -> TokenLogprobs:
        """The logprob of `token`, and the `top` largest. row [vocab] float32 logits.

        `part` is the thread that calls, of those of the sampler.

        Raises EngineError for logits that are not numbers.
        """
        count = min(top, len(row))
        tokens, values = np.empty(count, np.int64), np.empty(count, np.float32)
        normal = np.empty(1)
        if (
            self._kernel.rank(row, tokens, values, normal, self._room(len(row), part))
            == self._kernel.NOT_FINITE
        ):
            raise not_finite([0])
        logprob = float(row[token]) - float(normal[0])
        return TokenLogprobs(
            token,
            logprob,
            int(self._kernel.rank_of(row, token)),
            tokens,
            (values - normal).astype(np.float32),
        )

    def _choose(self, logits: Logits, states: Sequence[SamplingState | None]) -> list[int]:
        settings, keys = self._settings(states)
        tokens = np.empty(len(states), np.int64)

        def choose(part: int, begin: int, end: int) -> None:
            room = self._room(logits.shape[1], part)
            self._kernel.choose(logits, settings, keys, begin, end, tokens, room)

        self._share(len(states), logits.shape[1], choose)
        chosen: list[int] = tokens.tolist()
        if min(chosen) < 0:
            raise self._failure(chosen, states)
        return chosen

    def _settings(self, states: Sequence[SamplingState | None]) -> tuple[_Array, _Array]:
        """The arrays that the kernel takes; most steps have the same requests as the one before."""
        if states != self._last:
            self._last = list(states)
            self._arrays = (
                np.array([_LIKELIEST if state is None else state.settings for state in states], np.float64),
                np.array([(0, 0, 0) if state is None else (*state.key, 0) for state in states], np.uint64),
            )
        settings, keys = self._arrays
        keys[:, 2] = [0 if state is None else state.generated for state in states]
        return settings, keys

    def _failure(self, tokens: list[int], states: Sequence[SamplingState | None]) -> CleaveError:
        """Why there is no token where one is negative."""
        odd = [
            row
            for row, (token, state) in enumerate(zip(tokens, states, strict=True))
            if token == self._kernel.NOT_FINITE or (token < 0 and (state is None or not state.edits))
        ]
        return not_finite(odd) if odd else nothing_left()

    def _share(self, rows: int, vocab: int, run: Callable[[int, int, int], None]) -> None:
        """Call run(thread, begin, end) for all rows, a few at a time.

        Each thread takes the next few when it is ready: one that wakes late, or not at all, delays nobody.
        """
        few = max(1, _FEW // vocab)
        begins = iter(range(0, rows, few))

        def work(thread: int) -> None:
            for begin in begins:
                run(thread, begin, min(begin + few, rows))

        helpers: list[Future[None]] = []
        if self._pool is not None and rows * vocab >= _ENOUGH:
            count = min(self._threads, -(-rows // few))
            helpers = [self._pool.submit(work, thread) for thread in range(1, count)]
        try:
            work(0)
        finally:
            # Also when this thread is interrupted: the next step writes to the logits again.
            helpers = [helper for helper in helpers if not helper.cancel()]
            wait(helpers)
        for helper in helpers:
            helper.result()

    def _room(self, vocab: int, part: int = 0) -> _Array:
        """The scratch memory of one thread."""
        needed = self._kernel.scratch_floats(vocab)
        if len(self._scratch[part]) < needed:
            self._scratch[part] = np.empty(needed, np.float32)
        return self._scratch[part]


_FEW = 1 << 17
"""Logits that a thread takes at a time."""
_ENOUGH = 1 << 19
"""Logits that are worth more than one thread."""
_LIKELIEST = (0.0, 0, 1.0, 0.0)


def not_finite(rows: list[int]) -> EngineError:
    """The error of a step whose logits are not numbers in `rows`."""
    return EngineError(f"the engine's logits of rows {rows} are not finite; its dtype may be too narrow")


def nothing_left() -> RequestError:
    """The error of a request whose parameters leave no token."""
    return RequestError(
        "no token is left: the request's allowed_token_ids, bad_words, min_tokens and structured "
        "output exclude each other"
    )
