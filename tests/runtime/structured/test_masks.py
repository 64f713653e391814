"""Masks against a count of one's own: a token is allowed where text and token begin a match."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
import regex
from llguidance import LLMatcher
from tokenizers import Tokenizer as RustTokenizer
from vocabularies import DEMO_EOS, allowed, byte_fallback, byte_level, demo, load

from cleave.runtime.structured.compiler import GrammarCompiler
from cleave.runtime.structured.grammar import compute
from cleave.runtime.structured.params import StructuredOutput
from cleave.runtime.structured.vocabulary import Vocabulary
from cleave.runtime.tokenizer import Tokenizer

WORDS = ("abc", "aa", "12", "-1", " a", "éé", "日本", "x😀", "no", "ß")
CHARACTERS = 'abcxyzABZ012389-+ .,_\n"\\é日本😀ßЖ\x00\x7f'
"""Stand for all others where half a character may become any of many."""
PATTERNS = (
    "ab*c",
    "(abc|abd|b)+",
    "-?[0-9]{2,4}",
    "[^a]{1,3}",
    "(?:é|日本|😀)+x?",
    ".{0,2}b",
    r"\w+ \w+",
    "a{2,5}|12|",
    r"[a-c\-]+(?:,[0-9]+)*",
    "(?i)abc?",
    r"\p{L}{2}",
)
CHOICES = (
    ("yes", "no", "not at all"),
    ("a", "ab", "abc", "abca"),
    ("", "x"),
    ("日本", "日", "日本語"),
    ("😀", "😁x"),
)


def tokenizers() -> Iterator[tuple[str, RustTokenizer, tuple[int, ...]]]:
    yield "byte_level", byte_level(WORDS), (1,)
    yield "byte_fallback", byte_fallback(), (2,)


def characters_that_begin_with(half: bytes) -> Iterator[str]:
    """Some characters whose UTF-8 begins with these bytes."""
    first = half[0]
    length = 2 if first >> 5 == 0b110 else 3 if first >> 4 == 0b1110 else 4 if first >> 3 == 0b11110 else 0
    for filler in itertools.product((0x80, 0x90, 0x9F, 0xA0, 0xBF), repeat=max(0, length - len(half))):
        try:
            yield (half + bytes(filler)).decode()
        except UnicodeDecodeError:
            continue
    yield from (letter for letter in CHARACTERS if letter.encode().startswith(half))


def begins_match(pattern: regex.Pattern[str], written: bytes) -> bool:
    """Whether some text that begins with these bytes matches as a whole, by the `regex` package."""
    try:
        return pattern.fullmatch(written.decode(), partial=True) is not None
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data":
            return False
        whole, half = written[: error.start].decode(), written[error.start :]
    return any(
        pattern.fullmatch(whole + letter, partial=True) is not None
        for letter in characters_that_begin_with(half)
    )


def check_walk(
    wanted: StructuredOutput,
    tokenizer: Tokenizer,
    eos: tuple[int, ...],
    seed: int,
    begins: Callable[[bytes], bool],
    matches: Callable[[bytes], bool],
    *,
    only_whole: bool = False,
) -> None:
    """Every mask on a random walk is the set that `begins` gives, and has the end where `matches`.

    `only_whole`: tokens that end in the middle of a character are not compared.
    """
    compiler = GrammarCompiler(tokenizer, eos, threads=1)
    tokens = Vocabulary(tokenizer.definition, tokenizer.vocab_size, eos).tokens
    plain = [token for token, written in enumerate(tokens) if not written.startswith(b"\xff<")]
    constraint = compiler.constraint(wanted)
    generator, written = Random(seed), b""
    for _ in range(12):
        mask = set(allowed(constraint))
        assert (mask & set(eos) == set(eos)) == matches(written), written
        expected = {token for token in plain if tokens[token] and begins(written + tokens[token])}
        found = mask - set(eos)
        if only_whole:
            found, expected = (
                {t for t in ids if _text(written + tokens[t]) is not None} for ids in (found, expected)
            )
        if found != expected:
            # Text that is the only one possible comes in the tokens that the tokenizer makes of it.
            assert len(found) == 1, (written, found ^ expected)
            assert found < expected
            longest = max((tokens[token] for token in expected), key=len)
            assert all(longest.startswith(tokens[token]) for token in expected)
            assert not matches(written)
        if not found:
            assert constraint.is_complete
            break
        assert not constraint.is_complete
        token = generator.choice(sorted(found))
        constraint.accept(token)
        written += tokens[token]
    compiler.close()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("name", "made", "eos"), tokenizers(), ids=["byte_level", "byte_fallback"])
def test_masks_of_regular_expressions(
    pattern: str, name: str, made: RustTokenizer, eos: tuple[int, ...], tmp_path: Path
) -> None:
    compiled = regex.compile(pattern)
    for seed in range(3):
        check_walk(
            StructuredOutput(regex=pattern),
            load(made, tmp_path),
            eos,
            seed,
            lambda written: begins_match(compiled, written),
            lambda written: _text(written) is not None and compiled.fullmatch(_text(written)) is not None,
            # Of whole alphabets, `CHARACTERS` has too few.
            only_whole="\\w" in pattern or "\\p" in pattern,
        )


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize(("name", "made", "eos"), tokenizers(), ids=["byte_level", "byte_fallback"])
def test_masks_of_choices(
    choice: tuple[str, ...], name: str, made: RustTokenizer, eos: tuple[int, ...], tmp_path: Path
) -> None:
    encoded = [text.encode() for text in choice]
    for seed in range(4):
        check_walk(
            StructuredOutput(choice=choice),
            load(made, tmp_path),
            eos,
            seed,
            lambda written: any(text.startswith(written) for text in encoded),
            lambda written: written in encoded,
        )


def _text(written: bytes) -> str | None:
    try:
        return written.decode()
    except UnicodeDecodeError:
        return None


def test_masks_made_in_the_background_are_those_made_at_once() -> None:
    """With many requests of a few grammars at a time, so that they share lexers."""
    compiler = GrammarCompiler(demo(), DEMO_EOS, threads=4)
    generator = Random(0)
    wanted = [
        StructuredOutput(json_object=True),
        StructuredOutput(regex="(.*a.{5}b)|(.*c.{6}d)"),
        StructuredOutput(grammar='start: e\ne: e "+" T | T\nT: /[0-9]+/ | /[a-z]+/'),
    ]
    running = []
    for index in range(24):
        grammar = compiler.compile(wanted[index % 3])
        at_once: LLMatcher = grammar._compile()  # of its own: it shares nothing
        running.append((compiler.constraint(wanted[index % 3]), at_once))
    for _ in range(25):
        for constraint, at_once in running:
            if constraint.is_complete:
                continue
            assert np.array_equal(constraint.mask(), compute(at_once, 96))
            token = generator.choice(allowed(constraint))
            constraint.accept(token)
            assert at_once.consume_token(token)
    compiler.close()
