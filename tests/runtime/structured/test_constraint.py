"""Choices, grammars, wrong tokens, failures of one request, threads, and the cache of grammars."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
from vocabularies import DEMO_EOS, allowed, byte_fallback, demo, load, walk

from cleave.errors import EngineError, RequestError
from cleave.runtime.structured import grammar as grammar_module
from cleave.runtime.structured.compiler import GrammarCompiler
from cleave.runtime.structured.matcher import GrammarConstraint
from cleave.runtime.structured.params import StructuredOutput
from cleave.runtime.structured.vocabulary import Vocabulary

TOKENS = Vocabulary(demo().definition, 3072, DEMO_EOS).tokens
ARITHMETIC = """
start: sum
sum: product (("+" | "-") product)*
product: factor (("*") factor)*
factor: NUMBER | "-" factor | "(" sum ")"
NUMBER: /[1-9][0-9]{0,3}/
"""
EXPLOSIVE = "(.*a.{25}b)|(.*c.{30}d)"
"""Needs a state of the lexer for each set of places where an a or a c may have stood."""


@pytest.fixture
def compiler() -> Iterator[GrammarCompiler]:
    made = GrammarCompiler(demo(), DEMO_EOS, threads=2)
    yield made
    made.close()


def answer(compiler: GrammarCompiler, wanted: StructuredOutput, seed: int) -> str:
    return demo().decode(walk(compiler.constraint(wanted), TOKENS, DEMO_EOS, seed, free=12))


def write(constraint: GrammarConstraint, text: str) -> None:
    """Accept a text, byte by byte."""
    for byte in text.encode():
        constraint.accept(TOKENS.index(bytes([byte])))


def wander(constraint: GrammarConstraint, generator: Random, most: int) -> None:
    """Accept random tokens, and never the end."""
    for _ in range(most):
        constraint.accept(generator.choice([token for token in allowed(constraint) if token not in DEMO_EOS]))


@pytest.mark.parametrize(
    "choice",
    [
        ("yes", "no"),
        ("a", "ab", "abc"),
        ("", "x"),
        ("line\nbreak", "tab\t", 'a "quote"', "back\\slash", "\x07\x00\x7f"),
        ("日本", "naïve", "😀👩‍👩‍👧", "\u2028"),
        ("/a/", "start: x", "<|eos|>", "%json {}", "# no comment", "//"),
        tuple(f"item {index}" for index in range(3000)),
    ],
)
def test_an_answer_is_one_of_the_choices(compiler: GrammarCompiler, choice: tuple[str, ...]) -> None:
    wanted = StructuredOutput(choice=choice)
    found = {answer(compiler, wanted, seed) for seed in range(30)}
    assert found <= set(choice)
    assert len(found) > 1


@pytest.mark.parametrize(
    "pattern",
    [
        r"[0-9]{3}-[0-9]{4}",
        r"^(\+[0-9]{1,2} )?[a-z]+@[a-z]+\.(com|org)$",
        r"(?i)(true|false)",
        r"\d{4}-(0[1-9]|1[0-2])",
        r"[^\x00-\x7f]{2}",
        r"(a|b)*?c",
        'quote" and / and \\\\ and \n',
        r"\u00e9+|\x41",
    ],
)
def test_an_answer_matches_the_regular_expression(compiler: GrammarCompiler, pattern: str) -> None:
    for seed in range(10):
        assert re.fullmatch(pattern, answer(compiler, StructuredOutput(regex=pattern), seed))


def test_an_answer_of_the_arithmetic_grammar_can_be_evaluated(compiler: GrammarCompiler) -> None:
    texts = [answer(compiler, StructuredOutput(grammar=ARITHMETIC), seed) for seed in range(30)]
    assert all(isinstance(eval(text, {"__builtins__": {}}), int) for text in texts)
    assert any("(" in text for text in texts)


def test_a_grammar_with_a_schema_inside(compiler: GrammarCompiler) -> None:
    grammar = (
        'start: "<tool>" call "</tool>"\ncall: %json {"type": "object", "properties": {"a": {"const": 1}}, '
    )
    grammar += '"required": ["a"], "additionalProperties": false}'
    text = answer(compiler, StructuredOutput(grammar=grammar), 1)
    assert re.fullmatch(r'<tool>\{\s*"a"\s*:\s*1\s*\}</tool>', text)


def test_a_token_that_is_not_allowed(compiler: GrammarCompiler) -> None:
    """It ends nothing: the constraint stands where it stood."""
    constraint = compiler.constraint(StructuredOutput(regex="[0-9]+"))
    before = allowed(constraint)
    letter = demo().encode("a")[-1]
    for token in (letter, DEMO_EOS[0], -1, 3072, 10**9):
        with pytest.raises(RequestError, match=f"token {token} is not allowed by the regex"):
            constraint.accept(token)
    assert allowed(constraint) == before
    write(constraint, "7")


def test_a_request_that_exhausts_the_lexer_ends_alone(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lexer is shared with those that ask for the same grammar; they go on with one of their own."""
    monkeypatch.setitem(grammar_module._LIMITS, "max_lexer_states", 1000)
    wanted = StructuredOutput(regex=f"x[0-9]+|y{EXPLOSIVE}")
    costly, waiting, modest = (compiler.constraint(wanted) for _ in range(3))
    write(modest, "x1")
    write(costly, "y")
    with pytest.raises(RequestError, match=r"the regex fails after \d+ tokens: .*too many states") as first:
        wander(costly, Random(1), 300)
    with pytest.raises(RequestError) as again:
        costly.mask()
    assert str(again.value) == str(first.value)
    write(waiting, "x12")
    write(modest, "23")
    for constraint in (waiting, modest, compiler.constraint(wanted)):
        assert allowed(constraint)
    assert not costly.is_complete


def test_a_grammar_too_ambiguous_ends_its_request(compiler: GrammarCompiler) -> None:
    constraint = compiler.constraint(StructuredOutput(grammar='start: e\ne: e e e | e e | "a" | "b"'))
    with pytest.raises(RequestError, match="the grammar fails after"):
        write(constraint, "a" * 300)


def test_completion_is_known_without_waiting(compiler: GrammarCompiler) -> None:
    """While the mask is being computed, by threads that are all busy."""
    blocker = threading.Event()
    for _ in range(2):
        compiler._pool.submit(blocker.wait)
    constraint = compiler.constraint(StructuredOutput(regex="ab|c"))
    write(constraint, "a")
    assert not constraint.is_complete
    finished = compiler.constraint(StructuredOutput(regex="ab|c"))
    write(finished, "c")
    assert finished.is_complete
    assert set(allowed(finished)) == set(DEMO_EOS)
    blocker.set()
    assert len(allowed(constraint)) == 1


def test_after_close(compiler: GrammarCompiler) -> None:
    constraint = compiler.constraint(StructuredOutput(regex="[a-z]+"))
    blocker = threading.Event()
    for _ in range(2):
        compiler._pool.submit(blocker.wait)
    write(constraint, "a")
    other = compiler.constraint(StructuredOutput(regex="[a-z]+"))
    closing = threading.Thread(target=compiler.close)
    closing.start()
    with pytest.raises(EngineError, match="closed"):
        constraint.mask()
    with pytest.raises(EngineError, match="closed"):
        write(other, "a")
    blocker.set()
    closing.join()
    compiler.close()


def test_equal_wishes_are_compiled_once_and_the_oldest_goes() -> None:
    compiler = GrammarCompiler(demo(), DEMO_EOS, kept=2)
    first = compiler.compile(StructuredOutput(json_schema={"type": "integer"}))
    assert compiler.compile(StructuredOutput(json_schema='{"type": "integer"}')) is first
    other = StructuredOutput(json_schema={"type": "integer"}, disable_any_whitespace=True)
    assert compiler.compile(other) is not first
    assert compiler.compile(StructuredOutput(json_schema={"type": "integer"})) is first
    compiler.compile(StructuredOutput(regex="a"))
    assert compiler.compile(StructuredOutput(json_schema={"type": "integer"})) is first
    compiler.compile(StructuredOutput(regex="b"))
    compiler.compile(StructuredOutput(regex="c"))
    assert compiler.compile(StructuredOutput(json_schema={"type": "integer"})) is not first
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: compiler.compile(StructuredOutput(regex="new")), range(16)))
    assert len(set(map(id, made))) == 1
    compiler.close()


def test_two_models_in_one_process(tmp_path: Path) -> None:
    """Each with its tokenizer, on threads of its own, at the same time."""
    made = load(byte_fallback(), tmp_path)
    models = [(demo(), DEMO_EOS), (made, (2,))]
    compilers = [GrammarCompiler(tokenizer, eos, threads=1) for tokenizer, eos in models]
    pattern = r"(é|😀|[a-z ]){5,9}"

    def run(job: int) -> str:
        (tokenizer, eos), compiler = models[job % 2], compilers[job % 2]
        tokens = Vocabulary(tokenizer.definition, tokenizer.vocab_size, eos).tokens
        taken = walk(compiler.constraint(StructuredOutput(regex=pattern)), tokens, eos, job)
        return b"".join(tokens[token] for token in taken if token not in eos).decode()

    with ThreadPoolExecutor(4) as threads:
        for text in threads.map(run, range(40)):
            assert re.fullmatch(pattern, text)
    for compiler in compilers:
        compiler.close()
