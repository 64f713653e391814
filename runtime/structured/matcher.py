"""The constraint of one request: masks that are computed while the engine runs."""

from __future__ import annotations

from concurrent.futures import CancelledError, Executor, Future
from typing import Any

import numpy as np
import numpy.typing as npt

from cleave.errors import EngineError, RequestError
from cleave.runtime.structured.grammar import Grammar, compute, short, words


class GrammarConstraint:
    """Where one request stands in its grammar; a `TokenConstraint`. Use it from one thread at a time.

    What fails stays failed, with the same error however often it is asked for: a step that is run again in
    halves asks more than once.
    """

    def __init__(self, grammar: Grammar, vocab_size: int, library_size: int, pool: Executor) -> None:
        """`vocab_size`: logits of a row; `library_size`: tokens that the library knows, one more at most."""
        self._grammar = grammar
        self._pool = pool
        self._vocab_size = vocab_size
        self._words = words(library_size)
        self._base = grammar.base
        self._matcher = self._base.deep_copy()
        self._tokens: list[int] = []
        self._mask = self._cut(grammar.first_mask)
        self._pending: Future[None] | None = None
        self._is_complete = False
        self._error: RequestError | EngineError | None = None

    def mask(self) -> npt.NDArray[Any]:
        """Bits of the tokens that may come next: [ceil(vocab / 32)] uint32, token t is bit t % 32 of word
        t // 32. Waits where it is still being computed; valid until the next `accept`.

        No bit is set where the text is complete and the model has no end-of-sequence token. Raises
        RequestError where the grammar became too costly or leads nowhere, EngineError after the model
        was closed; both end this request only.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            try:
                pending.result()
            except CancelledError:
                self._error = EngineError("the model was closed while the request ran")
            except RequestError as error:
                self._error = error
        if self._error is not None:
            raise self._error
        return self._mask

    def accept(self, token: int) -> None:
        """Go on by a token that `mask` allowed. The next mask is begun in the background.

        Raises RequestError for a token that is not allowed, and what `mask` raises.
        """
        mask = self.mask()
        if not (0 <= token < self._vocab_size and mask[token // 32] >> np.uint32(token % 32) & 1):
            raise RequestError(f"token {token} is not allowed by the {self._grammar.kind} of the request")
        is_taken = self._matcher.consume_token(token)
        self._tokens.append(token)
        if is_taken and self._matcher.is_stopped():
            self._is_complete = True
            self._compute()
            return
        try:
            self._pending = self._pool.submit(self._compute if is_taken else self._go_alone)
        except RuntimeError:  # the pool's word for having been shut down
            self._error = EngineError("the model was closed while the request ran")
            raise self._error from None

    @property
    def is_complete(self) -> bool:
        """Whether the text matches and nothing but the end may follow. It never waits for the mask."""
        return self._is_complete

    def _compute(self) -> None:
        """The next mask, with a lexer of its own where the shared one fails."""
        mask = compute(self._matcher, self._words)
        if self._matcher.is_error():
            self._go_alone()
        else:
            self._mask = self._cut(mask)

    def _go_alone(self) -> None:
        """Raises RequestError where a fresh lexer fails as well."""
        matcher = self._grammar.alone(self._base, self._tokens)
        mask = compute(matcher, self._words)
        if matcher.is_error():
            why = short(matcher.get_error())
            raise RequestError(f"the {self._grammar.kind} fails after {len(self._tokens)} tokens: {why}")
        self._matcher, self._mask = matcher, self._cut(mask)

    def _cut(self, mask: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        """Without the end-of-sequence token that the library made up where the model has none."""
        cut = mask[: words(self._vocab_size)].copy()
        if self._vocab_size % 32:
            cut[-1] &= np.uint32((1 << self._vocab_size % 32) - 1)
        return cut
