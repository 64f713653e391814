"""Streaming detokenisation: text as soon as it is certain, and never half a character."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cleave.runtime.tokenizer import Tokenizer

_CONTEXT = 6
_MOST_EMPTY = 16
"""Tokens without text that are kept, in case one that follows gives them a meaning."""
_HALF = "\ufffd"
_LONGEST_HALF = 3
"""A character has at most four bytes; decoders show up to three of them as one U+FFFD each."""


class Detokenizer:
    """Turns the tokens of one answer into text.

    Tokens are decoded together with a few before them, the prompt's at first: a space or an accent may
    belong to two tokens. Text that may be half a character waits for the rest.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._tokens = list(prompt[-_CONTEXT:])
        self._context = 0
        """First token that is decoded again."""
        self._settled = len(self._tokens)
        """Tokens whose text is complete, the prompt's included."""
        self._given = 0
        """Characters given out of the text after the settled tokens."""

    def push(self, token_ids: Iterable[int]) -> str:
        """Take more tokens; gives back the text that is now certain."""
        self._tokens.extend(token_ids)
        text = self._text()
        certain = text
        for _ in range(_LONGEST_HALF):
            certain = certain.removesuffix(_HALF)
        new = certain[self._given :]
        if certain != text:
            self._given = max(self._given, len(certain))
        elif text:
            self._context, self._settled, self._given = self._settled, len(self._tokens), 0
        elif len(self._tokens) - self._settled > _MOST_EMPTY:
            # Special tokens, and ids that the tokenizer lacks: decoding skips them wherever they stand.
            del self._tokens[self._settled :]
        return new

    def finish(self) -> str:
        """The text that was still waiting; bytes that make no character are U+FFFD."""
        rest = self._text()[self._given :]
        self._context, self._settled, self._given = self._settled, len(self._tokens), 0
        return rest

    def _text(self) -> str:
        """Text after the settled tokens."""
        before = self._tokenizer.decode(self._tokens[self._context : self._settled])
        return self._tokenizer.decode(self._tokens[self._context :])[len(before) :]
