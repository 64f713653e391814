"""The bytes of tokens, for every kind of tokenizer, and for models with more or fewer logits than tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from llguidance import LLTokenizer
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers
from vocabularies import DEMO_EOS, allowed, byte_fallback, byte_level, demo, load, walk

from cleave.errors import EngineError
from cleave.runtime.structured.compiler import GrammarCompiler
from cleave.runtime.structured.params import StructuredOutput
from cleave.runtime.structured.vocabulary import Vocabulary
from cleave.runtime.tokenizer import Tokenizer

TEXTS = (
    "plain text",
    "naïve café",
    "日本語のテキスト",
    "😀👩‍👩‍👧 ok",
    '{"a": [1, 2.5e3, null]}',
    "\t\n\x00\x7f",
    "Жuk ßtraße",
    "<|eos|>",
)


def metaspace() -> RustTokenizer:
    """Unigram, as T5 and XLM-R have it, with bytes for the rest."""
    pieces = [
        "<unk>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁the",
        *"abcdefghijklmnopqrstuvwxyz",
    ]
    made = RustTokenizer(
        models.Unigram([(piece, -float(len(piece))) for piece in pieces], 0, byte_fallback=True)
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always")
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace("▁", "always")])
    made.add_special_tokens(["</s>"])
    return made


@pytest.fixture(params=["demo", "byte_level", "byte_fallback", "metaspace"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    if request.param == "demo":
        return demo()
    makers = {"byte_level": byte_level, "byte_fallback": byte_fallback, "metaspace": metaspace}
    return load(makers[request.param](), tmp_path)


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_of_tokens_joined_are_the_text(tokenizer: Tokenizer, text: str) -> None:
    vocabulary = Vocabulary(tokenizer.definition, tokenizer.vocab_size, ())
    tokens = RustTokenizer.from_str(tokenizer.definition).encode(f"a{text}", add_special_tokens=False).ids
    if any(token == "<unk>" for token in RustTokenizer.from_str(tokenizer.definition).encode(text).tokens):
        pytest.skip("the tokenizer cannot write it")
    written = b"".join(vocabulary.tokens[token] for token in tokens).replace(b"\xff", b"")
    assert written.decode().removeprefix(" ") == f"a{text}"


@pytest.mark.parametrize("text", TEXTS)
def test_forced_text_is_made_of_the_tokenizers_tokens(tokenizer: Tokenizer, text: str) -> None:
    """Without a space before it, and never of special tokens."""
    vocabulary = Vocabulary(tokenizer.definition, tokenizer.vocab_size, ())
    vocabulary.greedy = LLTokenizer(vocabulary).greedy_tokenize
    ids = vocabulary(text)
    assert b"".join(vocabulary.tokens[token] for token in ids) == text.encode()


@pytest.mark.parametrize(
    "made", [byte_level(["abc", "日本"]), byte_fallback()], ids=["byte_level", "fallback"]
)
def test_bytes_are_those_of_the_library(made: RustTokenizer) -> None:
    """llguidance reads tokenizer.json itself; where it can, it finds the same."""
    theirs = LLTokenizer(made.to_str(), eos_token=1)
    ours = Vocabulary(made.to_str(), made.get_vocab_size(), ()).tokens
    for token, written in enumerate(ours):
        if not theirs.is_special_token(token):
            assert written == theirs.decode_bytes([token])


def test_a_tokenizer_whose_tokens_are_no_fixed_bytes_is_refused(tmp_path: Path) -> None:
    made = RustTokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    made.decoder = decoders.WordPiece()
    compiler = GrammarCompiler(load(made, tmp_path), (0,))
    with pytest.raises(EngineError, match="WordPiece"):
        compiler.compile(StructuredOutput(regex="a"))


@pytest.mark.parametrize("vocab_size", [2000, 3071, 3072, 3073, 3200])
def test_masks_have_the_models_size(vocab_size: int) -> None:
    """No bit for a token that the model has no logit for, and none for one that the tokenizer lacks."""
    compiler = GrammarCompiler(demo(vocab_size), DEMO_EOS)
    constraint = compiler.constraint(StructuredOutput(regex="(?s:.*)"))
    mask = constraint.mask()
    assert mask.shape == (-(-vocab_size // 32),)
    assert max(allowed(constraint)) < min(vocab_size, 3072)
    tokens = Vocabulary(demo().definition, vocab_size, DEMO_EOS).tokens
    text = demo().decode(walk(compiler.constraint(StructuredOutput(json_object=True)), tokens, DEMO_EOS, 3))
    assert isinstance(json.loads(text), dict)
    compiler.close()


def test_the_end_is_allowed_exactly_where_the_text_may_end() -> None:
    compiler = GrammarCompiler(demo(), DEMO_EOS)
    constraint = compiler.constraint(StructuredOutput(regex="[0-9]{1,2}"))
    digit = demo().encode("7")[-1]
    assert not set(DEMO_EOS) & set(allowed(constraint))
    constraint.accept(digit)
    assert set(DEMO_EOS) < set(allowed(constraint))
    assert not constraint.is_complete
    constraint.accept(digit)
    assert constraint.is_complete
    assert set(allowed(constraint)) == set(DEMO_EOS)
    constraint.accept(DEMO_EOS[1])
    assert constraint.is_complete
    early = compiler.constraint(StructuredOutput(regex="[0-9]{1,2}"))
    early.accept(digit)
    early.accept(DEMO_EOS[0])
    assert early.is_complete
    compiler.close()


@pytest.mark.parametrize("eos", [(), (5000,)])
def test_a_model_without_an_end_of_sequence_token(eos: tuple[int, ...]) -> None:
    """Completeness is told by `is_complete` alone; token 0 is no end by accident."""
    compiler = GrammarCompiler(demo(), eos)
    constraint = compiler.constraint(StructuredOutput(choice=["7"]))
    constraint.accept(demo().encode("7")[-1])
    assert constraint.is_complete
    assert allowed(constraint) == []
    assert constraint.mask().shape == (96,)
    compiler.close()


def test_an_end_of_sequence_token_that_the_tokenizer_does_not_call_special(tmp_path: Path) -> None:
    made = byte_level(["EOS"])
    eos = made.token_to_id("EOS")
    compiler = GrammarCompiler(load(made, tmp_path), (eos,))
    constraint = compiler.constraint(StructuredOutput(regex="[A-Z]+"))
    assert eos not in allowed(constraint)
    constraint.accept(made.token_to_id("A"))
    constraint.accept(eos)
    assert constraint.is_complete
    compiler.close()
