"""Tokenizers of every kind that structured output has to cope with, and walks through constraints."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers

from cleave.runtime.structured.matcher import GrammarConstraint
from cleave.runtime.tokenizer import Tokenizer

DEMO = Path(__file__).parents[2] / "model_files" / "demo" / "tokenizer.json"
DEMO_EOS = (1, 3)
PIECES = ("the", "in", '{"', '":', '",', "true", "12", "no", "yes", "é", "日本", "😀", "an", "▁the", "▁a")


def load(made: RustTokenizer, folder: Path, vocab_size: int | None = None) -> Tokenizer:
    """As an artifact's tokenizer is loaded."""
    file = folder / "tokenizer.json"
    made.save(str(file))
    return Tokenizer(file, vocab_size or made.get_vocab_size())


def demo(vocab_size: int = 3072) -> Tokenizer:
    """Byte-level BPE, trained."""
    return Tokenizer(DEMO, vocab_size)


def byte_level(words: Iterable[str] = ()) -> RustTokenizer:
    """Byte-level BPE: <s>, </s>, a token for each byte, and one for each beginning of a word."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: index + 2 for index, letter in enumerate(alphabet)}
    merges = []
    for letters in map(_letters, words):
        for end in range(2, len(letters) + 1):
            if letters[:end] not in vocab:
                merges.append((letters[: end - 1], letters[end - 1]))
                vocab[letters[:end]] = len(vocab) + 2
    vocab |= {"<s>": 0, "</s>": 1}
    made = RustTokenizer(models.BPE(vocab, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>"])
    return made


def byte_fallback() -> RustTokenizer:
    """SentencePiece's BPE as Llama 2 has it: a token for each byte, pieces, and ▁ for a space."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    for letter in ["▁", *map(chr, range(33, 127)), *(letter for piece in PIECES for letter in piece)]:
        vocab.setdefault(letter, len(vocab))
    merges = []
    for piece in PIECES:
        for end in range(2, len(piece) + 1):
            if piece[:end] not in vocab:
                merges.append((piece[: end - 1], piece[end - 1]))
                vocab[piece[:end]] = len(vocab)
    made = RustTokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made


def allowed(constraint: GrammarConstraint) -> list[int]:
    """The tokens that the mask lets through."""
    return np.flatnonzero(np.unpackbits(constraint.mask().view(np.uint8), bitorder="little")).tolist()


def walk(
    constraint: GrammarConstraint,
    tokens: list[bytes],
    eos: Iterable[int],
    seed: int,
    *,
    free: int = 40,
    most: int = 2000,
) -> list[int]:
    """Random allowed tokens up to the end; after `free` of them mostly those that seem to lead there.

    `tokens` are the bytes of every token, by id.
    """
    generator = random.Random(seed)
    taken: list[int] = []
    while not constraint.is_complete:
        assert len(taken) < most, f"no end after {[tokens[token] for token in taken]}"
        ids = allowed(constraint)
        ends = [token for token in eos if token in ids]
        ids = [token for token in ids if token not in ends]
        if ends and (not ids or len(taken) >= free or generator.random() < 0.3):
            taken.append(generator.choice(ends))
        elif generator.random() < (0.7 if len(taken) >= free else 0.4):
            in_string = any(tokens[token] == b"~" for token in ids)
            taken.append(
                min(
                    ids,
                    key=lambda token: (_distance(tokens[token], in_string), token),
                )
            )
        else:
            taken.append(generator.choice(ids))
        constraint.accept(taken[-1])
    return taken


def _distance(token: bytes, in_string: bool) -> int:
    """How far from the end of a JSON text a token seems to lead."""
    if token.isspace():
        return 9
    order = (b'"', b"}", b"]", b":", b",") if in_string else (b"}", b"]", b'"', b":", b",")
    return order.index(token) if token in order else 5 + (len(token) > 1)


def _letters(text: str) -> str:
    """Text as byte-level tokenizers write it."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return "".join(piece for piece, _ in byte_level.pre_tokenize_str(text))
