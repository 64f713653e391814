"""Text to tokens and back, with the tokenizers library alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as RustTokenizer

from cleave.errors import ArtifactError, RequestError


class Tokenizer:
    """The tokenizer of an artifact."""

    def __init__(self, file: Path, vocab_size: int) -> None:
        """Raises ArtifactError where `file` is not a tokenizer.json."""
        try:
            self._tokenizer = RustTokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing more precise
            raise ArtifactError(f"{file} is not a tokenizer.json ({error}); export tokenizer again") from None
        self._vocab_size = vocab_size

    def encode(self, text: str) -> tuple[int, ...]:
        """Tokens of a text, special tokens added as the checkpoint does."""
        return tuple(self._tokenizer.encode(text).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of tokens; special tokens are left out, half characters are U+FFFD."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    def check(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """The ids as a tuple. Raises RequestError for one that the vocabulary does not have."""
        for token in token_ids:
            if isinstance(token, bool) or not isinstance(token, int):
                raise RequestError(f"token id {token!r} is not an integer")
            if not 0 <= token < self._vocab_size:
                raise RequestError(
                    f"token id {token} is out of the vocabulary; ids go from 0 to {self._vocab_size - 1}"
                )
        return tuple(token_ids)
