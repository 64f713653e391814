"""Text to tokens and back, with the tokenizers library alone."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer as RustTokenizer

from cleave.errors import ArtifactError, RequestError, reason


class Tokenizer:
    """The tokenizer of an artifact."""

    def __init__(self, file: Path, vocab_size: int) -> None:
        """Raises ArtifactError where `file` is not a tokenizer.json."""
        try:
            self._tokenizer = RustTokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing more precise
            raise ArtifactError(
                f"{file} is not a tokenizer.json ({reason(error)}); export tokenizer again"
            ) from None
        self._vocab_size = vocab_size

    @property
    def vocab_size(self) -> int:
        """Logits of a row; the tokenizer may have more tokens than that, or fewer."""
        return self._vocab_size

    @property
    def definition(self) -> str:
        """The text of its tokenizer.json."""
        text: str = self._tokenizer.to_str()
        return text

    def encode(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Tokens of a text, special tokens added as the checkpoint does, unless the text has them.

        Raises RequestError for a text with bytes that are no characters, or with a token that the
        embedding does not have: some checkpoints have more tokens than rows.
        """
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        except Exception:  # the library has a TypeError for lone surrogates
            raise RequestError(f"the prompt {text[:40]!a} is not text that UTF-8 can encode") from None
        return self.check(ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of tokens; special tokens are left out, half characters are U+FFFD."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    def spans(self, text: str, *, add_special_tokens: bool = True) -> list[tuple[int, int, int]]:
        """Tokens of a text as (id, first character, character after the last), as `encode` gives them."""
        ids = self.encode(text, add_special_tokens=add_special_tokens)
        offsets = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).offsets
        return [(token, start, stop) for token, (start, stop) in zip(ids, offsets, strict=True)]

    @cached_property
    def special_token_ids(self) -> frozenset[int]:
        """Tokens that are no text: ends, roles and the like."""
        added = self._tokenizer.get_added_tokens_decoder()
        return frozenset(token for token, entry in added.items() if entry.special)

    def encode_words(self, text: str) -> tuple[int, ...]:
        """Tokens of a text without special ones. Raises RequestError as `encode` does."""
        return self.check(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def text_of(self, token: int) -> str:
        """Text of one token by itself, special tokens by their name; parts of a character are U+FFFD."""
        text: str = self._tokenizer.decode([token], skip_special_tokens=False)
        return text

    def check(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """The ids as a tuple of int. Raises RequestError for one that the vocabulary does not have."""
        checked = tuple(token_ids)
        types = set(map(type, checked))
        if types == {str}:
            raise RequestError("one prompt is wanted here, and not a list of texts; ask for each by itself")
        if not types <= {int}:
            checked = tuple(map(_integer, checked))
        if checked and not 0 <= min(checked) <= max(checked) < self._vocab_size:
            token = next(token for token in checked if not 0 <= token < self._vocab_size)
            raise RequestError(
                f"token id {token} is out of the vocabulary; ids go from 0 to {self._vocab_size - 1}"
            )
        return checked


def _integer(token: object) -> int:
    """A token id as int, be it an int of Python, of numpy or of torch."""
    try:
        if isinstance(token, bool):
            raise TypeError
        return operator.index(token)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise RequestError(f"token id {token!r} is not an integer") from None
