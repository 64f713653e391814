"""How one request is sampled: its parameters in the form that the sampler takes, and what follows from its
tokens.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cleave.runtime.sampling.history import BadWords, TokenCounts
from cleave.runtime.sampling_params import SamplingParams
from cleave.runtime.structured.constraint import TokenConstraint

GREEDY_BELOW = 1e-5
"""Temperatures below this choose the likeliest token: dividing by them would overflow."""
_LOG2_E = math.log2(math.e)
_KEYS = 1 << 64


class SamplingState:
    """The sampling of one request. It changes by `accept` only, once for each token that is final."""

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        vocab_size: int,
        *,
        stop_token_ids: Iterable[int] = (),
        bad_words: Sequence[Sequence[int]] = (),
        constraint: TokenConstraint | None = None,
        stream: int = 0,
    ) -> None:
        """`params` are resolved and their token ids in the vocabulary; `bad_words` are in tokens.

        `stop_token_ids` are those that may not come before min_tokens. `stream` tells the answers of one
        request apart, where there are several: with one seed, each draws numbers of its own.
        """
        temperature = params.temperature or 0.0
        scale = 0.0 if temperature < GREEDY_BELOW else _LOG2_E / temperature
        self.settings = (max(scale, 1e-30) if scale else 0.0, params.top_k, params.top_p, params.min_p)
        """log2(e) / temperature, 0 for the likeliest token; top_k, 0 for all; top_p; min_p."""
        self.key = (secrets.randbits(64) if params.seed is None else params.seed % _KEYS, stream)
        """What the draws depend on, besides the place of the token in the answer."""
        self.generated = 0
        """Tokens of the answer that are final."""
        self.logprobs = params.logprobs
        self.prompt_logprobs = params.prompt_logprobs
        self.constraint = constraint
        self.min_tokens = params.min_tokens
        self.stops = np.array(sorted(stop_token_ids), np.int64)
        """[n] tokens that may not come before there are `min_tokens`."""
        self.allowed = _bits(params.allowed_token_ids, vocab_size)
        """[ceil(vocab / 32)] uint32 bits of the tokens that may come; None for all."""
        self.bad_words = BadWords(bad_words, prompt) if bad_words else None
        self.biased = np.array(list(params.logit_bias or ()), np.int64)
        self.biases = np.array(list((params.logit_bias or {}).values()), np.float32)
        """[n] float32, what is added to the logits of the tokens `biased`."""
        repetition = 1.0 if params.repetition_penalty is None else params.repetition_penalty
        self.penalties = (repetition, params.frequency_penalty, params.presence_penalty)
        """Repetition, frequency and presence penalty."""
        self.counts = None
        if self.penalties != (1.0, 0.0, 0.0):
            self.counts = TokenCounts(prompt if repetition != 1.0 else ())
        """The tokens so far, where there are penalties."""
        self.hides = constraint is not None or self.allowed is not None
        """Whether only some tokens of the vocabulary are allowed."""
        self.always_edits = (
            self.hides or self.bad_words is not None or len(self.biased) > 0 or self.counts is not None
        )
        """Whether `edit` changes logits also after min_tokens."""
        self.is_special = self.always_edits or self.min_tokens > 0 or self.logprobs is not None
        """Whether there is more to do than to choose by `settings`."""

    @property
    def is_plain(self) -> bool:
        """Whether the likeliest token is chosen at every place, and nothing else is asked for."""
        return self.settings[0] == 0.0 and not self.is_special and self.prompt_logprobs is None

    @property
    def edits(self) -> bool:
        """Whether `edit` changes the logits of the next token."""
        return self.always_edits or self.generated < self.min_tokens

    def edit(self, row: npt.NDArray[np.float32]) -> None:
        """Make the changes that come before the temperature, in the order of docs/sampling.md.

        row [vocab] float32, changed in place.
        """
        # Here, since it brings in numba: whoever only imports cleave does not wait for that.
        from cleave.runtime.sampling.edits import hide_outside, penalise

        if self.constraint is not None:
            hide_outside(row, self.constraint.mask())
        if self.allowed is not None:
            hide_outside(row, self.allowed)
        if self.bad_words is not None:
            row[self.bad_words.banned()] = -np.inf
        if self.generated < self.min_tokens and not self.is_complete:
            row[self.stops] = -np.inf
        if len(self.biased):
            row[self.biased] += self.biases
        if self.counts is not None:
            counts = self.counts
            penalise(row, counts.tokens, counts.counts, counts.size, *self.penalties)

    def accept(self, token: int) -> None:
        """Go on by a token that is final: committed, not merely drawn."""
        self.generated += 1
        if self.counts is not None:
            self.counts.add(token)
        if self.bad_words is not None:
            self.bad_words.add(token)
        if self.constraint is not None:
            self.constraint.accept(token)

    @property
    def is_complete(self) -> bool:
        """Whether the text is whole by its grammar; then the answer ends, min_tokens or not."""
        return self.constraint is not None and self.constraint.is_complete


def _bits(tokens: Sequence[int] | None, vocab_size: int) -> npt.NDArray[Any] | None:
    """[ceil(vocab / 32)] uint32, token t in bit t % 32 of word t // 32; None for all tokens."""
    if tokens is None:
        return None
    flags = np.zeros((vocab_size + 31) // 32 * 32, np.bool_)
    flags[list(tokens)] = True
    return np.packbits(flags, bitorder="little").view("<u4")
