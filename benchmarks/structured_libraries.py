"""llguidance, as Cleave uses it, and xgrammar, behind one interface."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer as RustTokenizer

from cleave.runtime.structured.compiler import GrammarCompiler
from cleave.runtime.structured.params import StructuredOutput
from cleave.runtime.tokenizer import Tokenizer

EOS = 0


class Matcher(Protocol):
    """One text under way."""

    def mask(self) -> object:
        """Compute the next mask."""

    def accept(self, token: int) -> bool:
        """Whether the token is taken."""

    def may_end(self) -> bool:
        """Whether the text is whole."""


class Llguidance:
    """As Cleave uses it, with its limits and its checks of the schema."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._compiler = GrammarCompiler(tokenizer, (EOS,), threads=1, kept=1000)
        self._compiler.prepare()

    def forget(self) -> None:
        """Compile anew from now on."""
        self._compiler._grammars.clear()

    def compile(self, schema: Any) -> Callable[[], Matcher]:
        """A maker of matchers. Raises where the schema is refused."""
        grammar = self._compiler.compile(StructuredOutput(json_schema=schema))

        class Made:
            def __init__(self, size: int) -> None:
                self._matcher = grammar.base.deep_copy()
                self._bits = np.zeros(size, np.uint32)

            def mask(self) -> object:
                self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
                return self._bits

            def accept(self, token: int) -> bool:
                return self._matcher.consume_token(token)

            def may_end(self) -> bool:
                return self._matcher.is_accepting()

        return lambda: Made(grammar.words)


class Xgrammar:
    """As its documentation says, one thread, its own cache."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        import xgrammar

        made = RustTokenizer.from_str(tokenizer.definition)
        vocab = [made.id_to_token(token) or "" for token in range(tokenizer.vocab_size)]
        self._library = xgrammar
        self._info = xgrammar.TokenizerInfo(
            vocab, xgrammar.VocabType.BYTE_LEVEL, vocab_size=len(vocab), stop_token_ids=[EOS]
        )
        self._compiler = xgrammar.GrammarCompiler(self._info, max_threads=1)

    def forget(self) -> None:
        """Compile anew from now on."""
        self._compiler.clear_cache()

    def compile(self, schema: Any) -> Callable[[], Matcher]:
        """A maker of matchers. Raises where the schema is refused."""
        library = self._library
        compiled = self._compiler.compile_json_schema(json.dumps(schema), strict_mode=False)

        class Made:
            def __init__(self, size: int) -> None:
                self._matcher = library.GrammarMatcher(compiled)
                self._bits = library.allocate_token_bitmask(1, size)

            def mask(self) -> object:
                self._matcher.fill_next_token_bitmask(self._bits)
                return self._bits

            def accept(self, token: int) -> bool:
                return bool(self._matcher.accept_token(token))

            def may_end(self) -> bool:
                return bool(self._matcher.accept_token(EOS))

        return lambda: Made(self._info.vocab_size)


LIBRARIES: dict[str, Callable[[Tokenizer], Llguidance | Xgrammar]] = {
    "llguidance": Llguidance,
    "xgrammar": Xgrammar,
}
