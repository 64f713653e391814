"""Tokens as the details of an answer list them, one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cleave.runtime.detokenizer import Detokenizer
from cleave.runtime.request import Logprob
from cleave.runtime.tokenizer import Tokenizer

_IMPOSSIBLE = -9999.0
"""What stands for minus infinity, which JSON does not have."""


class TokenLister:
    """Gives each token of one answer its part of the text."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._special = tokenizer.special_token_ids
        self._detokenizer = Detokenizer(tokenizer, prompt)

    def text(self, token: int) -> str:
        """What the next token adds to the text; of special tokens the name, which is no part of it."""
        added = self._detokenizer.push((token,))
        return self._tokenizer.text_of(token) if token in self._special else added

    def rest(self) -> str:
        """What the last token leaves of half a character."""
        return self._detokenizer.finish()

    def listed(self, token: int, place: Mapping[int, Logprob], *, last: bool) -> dict[str, Any]:
        """The next token."""
        return {
            "id": token,
            "text": self.text(token) + (self.rest() if last else ""),
            "logprob": finite(place[token].logprob),
            "special": token in self._special,
        }

    def likeliest(self, place: Mapping[int, Logprob], top: int) -> list[dict[str, Any]]:
        """The likeliest tokens for a place."""
        ranked = sorted(place.items(), key=lambda item: item[1].rank)[:top]
        return [
            {
                "id": token,
                "text": candidate.decoded_token,
                "logprob": finite(candidate.logprob),
                "special": token in self._special,
            }
            for token, candidate in ranked
        ]


def finite(logprob: float) -> float:
    """A logprob that JSON can have."""
    return max(logprob, _IMPOSSIBLE)
