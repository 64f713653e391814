"""The bytes of every token, which is what a grammar is matched against."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

from cleave.errors import EngineError

_SPECIAL = b"\xff"
"""llguidance's mark of a token that is no text; the byte never occurs in UTF-8."""
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
"""Bytes that byte-level tokenizers write as the character of that number."""


class Vocabulary:
    """The tokens of a model, in the form that llguidance asks for.

    Ids that the tokenizer lacks, and special tokens, are no text, and only a grammar that names them lets
    them through. Tokens that the model has no logit for are left out.
    """

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, definition: str, vocab_size: int, eos_token_ids: Collection[int]) -> None:
        """`definition` is the text of a tokenizer.json.

        Raises EngineError for a tokenizer whose tokens do not stand for fixed bytes.
        """
        described = json.loads(definition)
        self.tokens = _token_bytes(described, vocab_size)
        self.eos_token_ids = sorted(token for token in eos_token_ids if 0 <= token < vocab_size)
        for token in self.eos_token_ids:  # some checkpoints do not call theirs special
            self.tokens[token] = _SPECIAL + self.tokens[token].removeprefix(_SPECIAL)
        self.eos_token_id = self.eos_token_ids[0] if self.eos_token_ids else None
        """None: the library appends a token of its own."""
        self.special_token_ids: list[int] = []
        self._encoder = _without_prefix_space(described)
        self.greedy: Callable[[str], list[int]] | None = None
        """Any tokens of a text, for what the tokenizer itself does not give back unchanged."""

    def __call__(self, text: str) -> list[int]:
        """The tokens that the tokenizer makes of a text in the middle of an answer."""
        ids: list[int] = self._encoder.encode(text, add_special_tokens=False).ids
        if all(token < len(self.tokens) for token in ids):
            made = b"".join(self.tokens[token] for token in ids)
            if made == text.encode("utf-8"):
                return ids
        return self.greedy(text) if self.greedy is not None else []


def _token_bytes(described: dict[str, Any], vocab_size: int) -> list[bytes]:
    """Bytes of the tokens by id, [vocab_size]."""
    tokens = [_SPECIAL + f"<[{token}]>".encode() for token in range(vocab_size)]
    as_bytes = _decoder(described.get("decoder"))
    vocab = described["model"]["vocab"]
    pairs = vocab.items() if isinstance(vocab, dict) else ((entry[0], at) for at, entry in enumerate(vocab))
    for text, token in pairs:
        if token < vocab_size:
            tokens[token] = as_bytes(text)
    for added in described.get("added_tokens", ()):
        if added["id"] < vocab_size:
            text = str(added["content"]).encode("utf-8")
            tokens[added["id"]] = _SPECIAL + text if added["special"] else text
    return tokens


def _decoder(described: dict[str, Any] | None) -> Callable[[str], bytes]:
    """From the text of a vocabulary's entry to the bytes it stands for."""
    kinds = {part["type"]: part for part in _parts(described)}
    if "ByteLevel" in kinds:
        letters = _byte_letters()

        def byte_level(text: str) -> bytes:
            if all(letter in letters for letter in text):
                return bytes(letters[letter] for letter in text)
            return text.encode("utf-8")

        return byte_level
    if not kinds or not kinds.keys() <= {"ByteFallback", "Metaspace", "Replace", "Fuse", "Strip"}:
        raise EngineError(
            f"structured output needs a byte-level or SentencePiece tokenizer; the decoder of this one is "
            f"{', '.join(kinds) or 'none'}"
        )
    space = kinds.get("Metaspace", {}).get("replacement")
    replaced = [(part["pattern"], part["content"]) for part in _parts(described) if part["type"] == "Replace"]

    def sentence_piece(text: str) -> bytes:
        if "ByteFallback" in kinds and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            return bytes.fromhex(text[3:5])
        for pattern, content in replaced:
            text = text.replace(pattern.get("String", ""), content) if pattern.get("String") else text
        return (text.replace(space, " ") if space else text).encode("utf-8")

    return sentence_piece


def _parts(described: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """A decoder, or the ones it is a sequence of."""
    if described is None:
        return
    if described["type"] == "Sequence":
        for part in described["decoders"]:
            yield from _parts(part)
    else:
        yield described


def _byte_letters() -> dict[str, int]:
    """The letters of byte-level tokenizers: printable bytes as they are, the others from U+0100 on."""
    others = [byte for byte in range(256) if byte not in _PRINTABLE]
    return {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + at): byte for at, byte in enumerate(others)}


def _without_prefix_space(described: dict[str, Any]) -> RustTokenizer:
    """The tokenizer for text that does not begin the prompt, and in which special tokens are mere text."""
    changed = dict(described)
    changed["normalizer"] = _no_prepend(described.get("normalizer"))
    changed["pre_tokenizer"] = _no_prefix(described.get("pre_tokenizer"))
    changed["truncation"] = changed["padding"] = None
    tokenizer = RustTokenizer.from_str(json.dumps(changed))
    tokenizer.encode_special_tokens = True
    return tokenizer


def _no_prepend(part: dict[str, Any] | None) -> dict[str, Any] | None:
    if part is None or part["type"] == "Prepend":
        return None
    if part["type"] == "Sequence":
        return part | {"normalizers": [kept for one in part["normalizers"] if (kept := _no_prepend(one))]}
    return part


def _no_prefix(part: dict[str, Any] | None) -> dict[str, Any] | None:
    if part is None:
        return None
    if part["type"] == "Sequence":
        return part | {"pretokenizers": [_no_prefix(one) for one in part["pretokenizers"]]}
    if part["type"] == "Metaspace":
        return part | {"prepend_scheme": "never"}
    return part | {"add_prefix_space": False} if "add_prefix_space" in part else part
