"""One model's grammars: compiled once, kept while they are in use."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING

from cleave.errors import EngineError, MissingPackage
from cleave.runtime.structured.grammar import Grammar, short
from cleave.runtime.structured.matcher import GrammarConstraint
from cleave.runtime.structured.params import StructuredOutput
from cleave.runtime.structured.vocabulary import Vocabulary
from cleave.runtime.tokenizer import Tokenizer
from cleave.threads import physical_cores

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_KEPT = 32
_MOST_THREADS = 4


class GrammarCompiler:
    """Makes the constraints of one model's requests. Any number of threads may call it.

    The library and the vocabulary are loaded by the first request that asks for structured output.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        eos_token_ids: Collection[int],
        *,
        threads: int | None = None,
        kept: int = _KEPT,
    ) -> None:
        """`threads` compute masks while the engine runs, None: at most four; `kept`: grammars that stay
        compiled.
        """
        self._tokenizer = tokenizer
        self._eos_token_ids = frozenset(eos_token_ids)
        self._kept = kept
        self._grammars: OrderedDict[StructuredOutput, Grammar] = OrderedDict()
        self._lock = threading.Lock()
        # One at a time: a hostile grammar may take a second and 100 MB to be refused.
        self._compiling = threading.Lock()
        self._pool = ThreadPoolExecutor(
            threads or min(_MOST_THREADS, physical_cores()), thread_name_prefix="cleave-masks"
        )

    def constraint(self, wanted: StructuredOutput) -> GrammarConstraint:
        """The constraint of one new request.

        Raises RequestError for what cannot be compiled, EngineError for a tokenizer that cannot be
        constrained, MissingPackage where the library is not installed.
        """
        library = self._library_tokenizer
        return GrammarConstraint(
            self.compile(wanted), self._tokenizer.vocab_size, library.vocab_size, self._pool
        )

    def compile(self, wanted: StructuredOutput) -> Grammar:
        """The compiled grammar, from those that are kept where it is there. Raises as `constraint` does."""
        found = self._find(wanted)
        if found is not None:
            return found
        with self._compiling:
            found = self._find(wanted)  # somebody else may have compiled it meanwhile
            if found is not None:
                return found
            made = Grammar(self._library_tokenizer, wanted)
        with self._lock:
            self._grammars[wanted] = made
            while len(self._grammars) > self._kept:
                self._grammars.popitem(last=False)
        return made

    def close(self) -> None:
        """End the threads. Requests that still run get an EngineError when they ask for a mask."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _find(self, wanted: StructuredOutput) -> Grammar | None:
        with self._lock:
            found = self._grammars.get(wanted)
            if found is not None:
                self._grammars.move_to_end(wanted)
            return found

    @cached_property
    def _library_tokenizer(self) -> LLTokenizer:
        """The vocabulary as a trie."""
        try:
            from llguidance import LLTokenizer
        except ImportError:
            raise MissingPackage("llguidance", "structured", "structured output") from None
        vocabulary = Vocabulary(self._tokenizer.definition, self._tokenizer.vocab_size, self._eos_token_ids)
        try:
            # It takes whatever has the attributes of its TokenizerWrapper.
            made = LLTokenizer(vocabulary, eos_token=vocabulary.eos_token_ids or None)  # type: ignore[arg-type]
        except Exception as error:
            raise EngineError(f"structured output cannot use this tokenizer ({short(error)})") from None
        vocabulary.greedy = made.greedy_tokenize
        return made
