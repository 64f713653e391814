"""A compiled grammar, from which every request that asks for it gets a matcher."""

from __future__ import annotations

import json
import re
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cleave.errors import RequestError
from cleave.runtime.structured.params import StructuredOutput

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_LIMITS: dict[str, Any] = {
    "max_items_in_row": 4_000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 5_000,
    "max_lexer_states": 16_384,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
"""What a grammar may cost (`LLParserLimits`): to compile, about a second; a mask, about 0.1 s; memory, the
lexer's states at 1 to 2 kB each."""
_STACK_BYTES = 16 << 20
_STACK_UNIT = 64 << 10
_STACK_PER_BYTE = 2048
"""The library recurses from rule to rule; measured, a byte of source takes at most 1 kB of stack."""
# The size that the next thread gets is the process's, and so is the lock on it.
_stack_size = threading.Lock()
_NO_SPACE = {"whitespace_flexible": False}
_SOME_SPACE = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{0,16}"}
"""Enough to indent by; without a bound, models that are unsure go on with spaces until max_tokens."""
_QUOTED = 160
_REGEX_ERROR = re.compile(r"regex parse error:\n {4}.*\n {4}( *)\^+\nerror: (.*)")
"""How the library draws the place of a mistake in a regular expression."""


class Grammar:
    """One compiled grammar. Any number of threads may ask it for matchers.

    Matchers share one lexer, which remembers the states that any of them met. Where it has grown to its
    limit, it fails for all of them, also for a request that needs little: `alone` gives it one of its own.
    """

    def __init__(self, tokenizer: LLTokenizer, wanted: StructuredOutput) -> None:
        """Compile. Raises RequestError with the library's reason for what cannot be compiled."""
        self.kind = wanted.kind
        self._tokenizer = tokenizer
        self._source = _source(wanted)
        self._lock = threading.Lock()
        self._base = self._compile()
        first = self._base.deep_copy()
        self.words = words(tokenizer.vocab_size)
        """Words of a mask of the library, which may know one token more than the model."""
        self.first_mask = compute(first, self.words)
        """The mask before the first token; computed at once, so that a grammar that has none is refused."""
        if first.is_error():
            raise self._refusal(first)

    @property
    def base(self) -> LLMatcher:
        """The matcher at the beginning of the text. Only copies of it may go on, which share its lexer."""
        return self._base

    def alone(self, base: LLMatcher, tokens: list[int]) -> LLMatcher:
        """A matcher after `tokens` with a lexer of its own, in the place of a copy of `base` that failed.

        New requests get another lexer as well, unless they already do. Raises RequestError.
        """
        with self._lock:
            if self._base is base:
                self._base = self._compile()
        matcher = self._compile()
        matcher.consume_tokens(tokens)
        return matcher

    def _compile(self) -> LLMatcher:
        """Raises RequestError."""
        from llguidance import LLMatcher, LLParserLimits

        made: list[LLMatcher | BaseException] = []

        def compile_here() -> None:
            try:
                limits = LLParserLimits(**_LIMITS)
                made.append(LLMatcher(self._tokenizer, self._source, log_level=0, limits=limits))
            except BaseException as error:  # a panic of the library is no Exception
                made.append(error)

        stack = _STACK_BYTES + _STACK_PER_BYTE * len(self._source.encode("utf-8"))
        thread = threading.Thread(target=compile_here, name="cleave-grammar")
        with _stack_size:
            before = threading.stack_size(-(-stack // _STACK_UNIT) * _STACK_UNIT)
            try:
                thread.start()
            except RuntimeError:
                raise RequestError(
                    f"the {self.kind} cannot be compiled: there is no room for a stack of {stack >> 20} MiB"
                ) from None
            finally:
                threading.stack_size(before)
        thread.join()
        (matcher,) = made
        if isinstance(matcher, BaseException):
            raise RequestError(f"the {self.kind} cannot be compiled ({short(matcher)})")
        if matcher.is_error():
            raise self._refusal(matcher)
        return matcher

    def _refusal(self, matcher: LLMatcher) -> RequestError:
        return RequestError(f"the {self.kind} cannot be compiled: {short(matcher.get_error())}")


def words(vocab_size: int) -> int:
    """Words of a mask."""
    return -(-vocab_size // 32)


def compute(matcher: LLMatcher, count: int) -> npt.NDArray[np.uint32]:
    """The matcher's mask, [count] uint32. Where the matcher fails, see its `is_error`."""
    mask = np.zeros(count, np.uint32)
    matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
    return mask


def short(message: object) -> str:
    """What the library says, in one line: it quotes the grammar, which may be long."""
    drawn = _REGEX_ERROR.search(str(message))
    if drawn is not None:
        return f"{drawn[2]}, at character {len(drawn[1])} of the regular expression"
    text = " ".join(str(message).replace("<non-verbose/>", "").split())
    if text.startswith("NoExtension"):
        return "no text, or none that the vocabulary can write, matches it"
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}..."


def _source(wanted: StructuredOutput) -> str:
    """The library's own form of what is wanted; never the caller's text as it is, which could set options."""
    if wanted.kind in ("json_schema", "json_object"):
        schema = json.loads(wanted.schema_text)
        if isinstance(schema, dict):
            schema["x-guidance"] = _NO_SPACE if wanted.disable_any_whitespace else _SOME_SPACE
        return json.dumps({"grammars": [{"json_schema": schema}]}, ensure_ascii=False)
    if wanted.kind == "regex":
        from llguidance import LLMatcher

        return LLMatcher.grammar_from_regex(str(wanted.regex))
    if wanted.kind == "choice":
        alternatives = "\n    | ".join(map(_quoted, wanted.choice or ()))
        return _lark(f"start: CHOICE\nCHOICE: {alternatives}\n")
    return _lark(str(wanted.grammar))


def _lark(text: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": text}]}, ensure_ascii=False)


def _quoted(text: str) -> str:
    """As a string of Lark: JSON's, but for the delete character, which has to be escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
