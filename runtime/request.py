"""What a user asks for, and what comes back."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from cleave.errors import RequestError

FinishReason = Literal["stop", "length", "abort", "error"]
"""How a request ended: the model stopped; max_tokens or the context is reached; it was called off;
it made a step fail. Each request ends in exactly one of them."""

Prompt = str | Sequence[int]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen, and when to stop. Decoding is greedy: the likeliest token."""

    temperature: float = 0.0
    max_tokens: int | None = None
    """Most tokens to generate; None: until the model stops or its context is full."""
    ignore_eos: bool = False
    """Go on after an end-of-sequence token."""
    stop: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    n: int = 1
    seed: int | None = None

    def __post_init__(self) -> None:
        """Raises RequestError for values that are not allowed."""
        if isinstance(self.temperature, bool) or self.temperature != 0:
            raise RequestError(
                f"temperature is {self.temperature}; only greedy decoding is there: temperature=0"
            )
        if self.max_tokens is None:
            return
        try:
            object.__setattr__(self, "max_tokens", operator.index(self.max_tokens))
        except TypeError:
            raise RequestError(f"max_tokens is {self.max_tokens!r}, which is no whole number") from None
        if self.max_tokens < 1:
            raise RequestError(
                f"max_tokens is {self.max_tokens}; it must be at least 1, or None for no limit"
            )


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to one prompt."""

    prompt: str | None
    """None where the prompt was given as token ids."""
    prompt_token_ids: tuple[int, ...]
    text: str
    """What follows the prompt; special tokens are left out."""
    token_ids: tuple[int, ...]
    """Every generated token, the end-of-sequence token included."""
    finish_reason: FinishReason
    """"stop": the model ended it; "length": max_tokens or the context did; "error": see `error`."""
    stop_reason: str | int | None = None
    """The stop string or the one of `stop_token_ids` that ended it; None for anything else."""
    error: str | None = None
    """Why it failed or was called off; text and token_ids are what came before."""
    index: int = 0
    """Which of the `n` answers to the prompt this is."""
    request_id: str = field(default="", compare=False)
    """The name under which it ran."""
    cached_tokens: int = field(default=0, compare=False)
    """Tokens of the prompt that the prefix cache had; they cost nothing, and change nothing."""
    preemptions: int = field(default=0, compare=False)
    """How often its pages were taken for a more urgent request, to be computed again later."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed answer; the texts of all chunks of one `index` joined are the whole text."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    """None in every chunk but the last."""
    error: str | None = None
    """Why it failed or was called off, in a last chunk."""
    stop_reason: str | int | None = None
    """As in `Completion`, in a last chunk."""
    index: int = 0
    """Which of the `n` answers it belongs to."""

    def __add__(self, later: Chunk) -> Chunk:
        """This chunk and the one after it as one."""
        return replace(later, text=self.text + later.text, token_ids=self.token_ids + later.token_ids)
