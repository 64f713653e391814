"""How the next token is chosen, and when to stop: what a user asks for, and what the checkpoint says."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cleave.errors import ArtifactError, RequestError
from cleave.runtime.sampling import checks
from cleave.runtime.structured.params import StructuredOutput

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 256
"""Characters of one stop string."""
MAX_BAD_WORDS = 1024
MAX_BAD_WORD_LENGTH = 256
MAX_LOGPROBS = 20
MAX_N = 1024
MAX_BIAS = 100.0
_SEED_RANGE = (-(2**63), 2**64 - 1)
_PENALTY = (-2.0, 2.0)
_REPETITION = (0.01, 100.0)
"""Beyond these, logits would no longer be finite float32 numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen, and when to stop; docs/sampling.md says it in one table.

    Where `temperature`, `top_k`, `top_p`, `min_p` or `repetition_penalty` is None, the checkpoint's
    generation_config.json decides; see `SamplingDefaults`. All values are checked here, token ids also
    against the vocabulary when the request is submitted.
    """

    temperature: float | None = None
    """Logits are divided by it; 0: the likeliest token."""
    top_k: int | None = None
    """Only the likeliest so many tokens, and what is as likely as the last of them; 0 or -1: all."""
    top_p: float | None = None
    """Only the likeliest tokens that have this share of the probability; 1: all."""
    min_p: float | None = None
    """Only tokens with this share of the likeliest token's probability; 0: all."""
    repetition_penalty: float | None = None
    """Logits of tokens of prompt and answer are divided by it, negative ones multiplied; 1: none."""
    presence_penalty: float = 0.0
    """Taken from the logits of tokens that the answer has."""
    frequency_penalty: float = 0.0
    """Taken from the logit of a token as often as the answer has it."""
    seed: int | None = None
    """Makes the draws repeatable; None: new ones for each request."""
    max_tokens: int | None = None
    """Most tokens to generate; None: until the model stops or its context is full."""
    min_tokens: int = 0
    """Tokens that are generated before one of the stop tokens may come."""
    stop: str | Sequence[str] | None = None
    """Strings that end the answer; kept as a tuple."""
    include_stop_str_in_output: bool = False
    """Whether the text keeps the stop string."""
    stop_token_ids: Sequence[int] | None = None
    """Tokens that end the answer, besides the checkpoint's end-of-sequence tokens; kept as a tuple."""
    ignore_eos: bool = False
    """Go on after an end-of-sequence token."""
    logprobs: int | None = None
    """Give the log-probability of every generated token, and of so many of the likeliest ones."""
    prompt_logprobs: int | None = None
    """The same for the tokens of the prompt."""
    n: int = 1
    """Answers to one prompt."""
    logit_bias: Mapping[int, float] | None = None
    """Token id -> what is added to its logit; kept as a dict."""
    allowed_token_ids: Sequence[int] | None = None
    """The only tokens that may be generated; kept as a tuple."""
    bad_words: str | Sequence[str] | None = None
    """Strings whose tokens are never completed; kept as a tuple."""
    structured: StructuredOutput | None = None
    """What text the whole answer has to be."""

    def __post_init__(self) -> None:
        """Raises RequestError for values that are not allowed."""
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, check(name, value))
            elif name not in _OPTIONAL:
                raise RequestError(f"{name} is None; leave it out, or give a value")
        checks.flag("include_stop_str_in_output", self.include_stop_str_in_output)
        checks.flag("ignore_eos", self.ignore_eos)
        if self.structured is not None and not isinstance(self.structured, StructuredOutput):
            raise checks.refuse("structured", self.structured, "a StructuredOutput, or None")
        if self.top_k == -1:
            object.__setattr__(self, "top_k", 0)
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise RequestError("allowed_token_ids is empty; give at least one token, or None for all")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens is {self.min_tokens}; it must be at most max_tokens, which is {self.max_tokens}"
            )

    def resolved(self, defaults: SamplingDefaults) -> SamplingParams:
        """The same with what was not given taken from the checkpoint: then none of it is None."""
        given = {
            name: getattr(defaults, name)
            for name in SamplingDefaults.__slots__
            if getattr(self, name) is None
        }
        return replace(self, **given) if given else self


def check_params(params: object) -> SamplingParams:
    """The same. Raises RequestError for what is no SamplingParams."""
    if not isinstance(params, SamplingParams):
        raise RequestError(f"params is of type {type(params).__name__}; give cleave.SamplingParams")
    return params


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What the checkpoint says of sampling, for parameters that a request does not give."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @classmethod
    def from_generation_config(cls, config: Mapping[str, Any]) -> SamplingDefaults:
        """The defaults of a generation_config.json.

        Without `do_sample` decoding is greedy, as in transformers; with it the temperature is 1 where
        none is given. Raises ArtifactError for values that are not allowed.
        """
        given = {name: config[name] for name in ("temperature", *_FILTERS) if config.get(name) is not None}
        try:
            checked = SamplingParams(**given)
        except RequestError as error:
            raise ArtifactError(f"generation_config.json is damaged: {error}") from None
        temperature = 0.0
        if config.get("do_sample"):
            temperature = 1.0 if checked.temperature is None else checked.temperature
        filters = {name: getattr(checked, name) for name in _FILTERS if name in given}
        return cls(temperature=temperature, **filters)


_FILTERS = ("top_k", "top_p", "min_p", "repetition_penalty")
_OPTIONAL = frozenset(
    ("temperature", *_FILTERS, "seed", "max_tokens", "stop", "stop_token_ids", "logprobs", "prompt_logprobs",
     "logit_bias", "allowed_token_ids", "bad_words")
)  # fmt: skip
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "temperature": lambda name, value: checks.number(name, value, 0.0, math.inf),
    "top_k": lambda name, value: checks.whole(name, value, -1, note="; 0 or -1 keeps all tokens"),
    "top_p": lambda name, value: checks.number(name, value, 0.0, 1.0, without_low=True),
    "min_p": lambda name, value: checks.number(name, value, 0.0, 1.0),
    "repetition_penalty": lambda name, value: checks.number(name, value, *_REPETITION),
    "presence_penalty": lambda name, value: checks.number(name, value, *_PENALTY),
    "frequency_penalty": lambda name, value: checks.number(name, value, *_PENALTY),
    "seed": lambda name, value: checks.whole(name, value, *_SEED_RANGE),
    "max_tokens": lambda name, value: checks.whole(name, value, 1, note=", or left out for no limit"),
    "min_tokens": lambda name, value: checks.whole(name, value, 0),
    "stop": lambda name, value: checks.texts(name, value, most=MAX_STOP_STRINGS, longest=MAX_STOP_LENGTH),
    "stop_token_ids": checks.token_ids,
    "logprobs": lambda name, value: checks.whole(name, value, 0, MAX_LOGPROBS),
    "prompt_logprobs": lambda name, value: checks.whole(name, value, 0, MAX_LOGPROBS),
    "n": lambda name, value: checks.whole(name, value, 1, MAX_N),
    "logit_bias": lambda name, value: checks.biases(name, value, MAX_BIAS),
    "allowed_token_ids": checks.token_ids,
    "bad_words": lambda name, value: checks.texts(
        name, value, most=MAX_BAD_WORDS, longest=MAX_BAD_WORD_LENGTH
    ),
}
