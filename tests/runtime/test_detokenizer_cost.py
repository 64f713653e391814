"""Detokenising costs the same for every token, however many came before and whatever they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from cleave.runtime.detokenizer import Detokenizer
from cleave.runtime.tokenizer import Tokenizer

VOCABULARY = 32000
"""More than the tokenizer has: ids above its own have no text."""


class Counting(Tokenizer):
    longest = 0

    def decode(self, token_ids: Sequence[int]) -> str:
        self.longest = max(self.longest, len(token_ids))
        return super().decode(token_ids)


@pytest.mark.parametrize("token", [0, 5, 31999], ids=["special", "text", "unknown"])
def test_few_tokens_are_decoded_again(demo_checkpoint: Path, token: int) -> None:
    tokenizer = Counting(demo_checkpoint / "tokenizer.json", VOCABULARY)
    detokenizer = Detokenizer(tokenizer, [1, 2, 3])
    for _ in range(500):
        detokenizer.push([token])
    detokenizer.finish()
    assert tokenizer.longest <= 32


def test_text_around_many_tokens_without_text_is_whole(demo_checkpoint: Path) -> None:
    tokenizer = Tokenizer(demo_checkpoint / "tokenizer.json", VOCABULARY)
    text = tokenizer.encode("San Francisco é 東 is", add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer, [])
    parts = []
    for token in text:
        parts += [detokenizer.push([token]), *(detokenizer.push([31999]) for _ in range(40))]
    assert "".join(parts) + detokenizer.finish() == tokenizer.decode(text)
