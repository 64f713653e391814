"""Every answer of a JSON schema parses and validates, whatever tokens are drawn."""

from __future__ import annotations

import ipaddress
import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from schemas import random_schema
from vocabularies import DEMO_EOS, byte_fallback, demo, load, walk

from cleave.runtime.structured.compiler import GrammarCompiler
from cleave.runtime.structured.params import StructuredOutput
from cleave.runtime.structured.vocabulary import Vocabulary
from cleave.runtime.tokenizer import Tokenizer

Answer = Callable[[StructuredOutput, int], str]


def answers(tokenizer: Tokenizer, eos: tuple[int, ...]) -> Iterator[Answer]:
    compiler = GrammarCompiler(tokenizer, eos, threads=2)
    tokens = Vocabulary(tokenizer.definition, tokenizer.vocab_size, eos).tokens

    def answer(wanted: StructuredOutput, seed: int) -> str:
        taken = walk(compiler.constraint(wanted), tokens, eos, seed)
        # After a prompt, as in an answer: some decoders cut the space at the very beginning.
        prompt = tokenizer.encode("a")
        return tokenizer.decode([*prompt, *taken])[len(tokenizer.decode(prompt)) :]

    yield answer
    compiler.close()


@pytest.fixture(scope="module")
def byte_level_answer() -> Iterator[Answer]:
    yield from answers(demo(), DEMO_EOS)


@pytest.fixture(scope="module")
def fallback_answer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answer]:
    folder: Path = tmp_path_factory.mktemp("byte_fallback")
    yield from answers(load(byte_fallback(), folder), (2,))


@pytest.mark.parametrize("seed", range(100))
def test_answers_of_random_schemas_validate(
    seed: int, byte_level_answer: Answer, fallback_answer: Answer
) -> None:
    schema = random_schema(seed)
    Draft202012Validator.check_schema(schema)
    wanted = StructuredOutput(json_schema=schema, disable_any_whitespace=seed % 3 == 0)
    for answer in (byte_level_answer, fallback_answer):
        for walked in range(3):
            text = answer(wanted, 1000 * seed + walked)
            Draft202012Validator(schema).validate(json.loads(text))


def test_any_object_and_any_value(byte_level_answer: Answer) -> None:
    for seed in range(20):
        assert isinstance(json.loads(byte_level_answer(StructuredOutput(json_object=True), seed)), dict)
        json.loads(byte_level_answer(StructuredOutput(json_schema=True), seed))
        json.loads(byte_level_answer(StructuredOutput(json_schema="{}"), seed))


def test_no_whitespace_where_it_is_disabled(byte_level_answer: Answer) -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 2}
    for seed in range(20):
        text = byte_level_answer(StructuredOutput(json_schema=schema, disable_any_whitespace=True), seed)
        assert text == json.dumps(json.loads(text), separators=(",", ":")).replace("-0", "0") or "-0" in text
    texts = [byte_level_answer(StructuredOutput(json_schema=schema), seed) for seed in range(20)]
    assert any(" " in text or "\n" in text for text in texts)


@pytest.mark.parametrize(
    ("name", "parse"),
    [("uuid", uuid.UUID), ("ipv4", ipaddress.IPv4Address), ("ipv6", ipaddress.IPv6Address)],
)
def test_formats_are_what_python_reads(
    name: str, parse: Callable[[str], object], byte_level_answer: Answer
) -> None:
    wanted = StructuredOutput(json_schema={"type": "string", "format": name})
    for seed in range(30):
        parse(json.loads(byte_level_answer(wanted, seed)))


def test_properties_come_in_the_order_of_the_schema(byte_level_answer: Answer) -> None:
    names = ["zebra", "apple", "mango"]
    schema = {
        "type": "object",
        "properties": {name: {"type": "boolean"} for name in names},
        "required": sorted(names),
        "additionalProperties": False,
    }
    for seed in range(5):
        assert list(json.loads(byte_level_answer(StructuredOutput(json_schema=schema), seed))) == names
