"""What a user asks for, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from cleave.runtime.sampling.logprobs import Logprob
from cleave.runtime.sampling_params import SamplingParams

__all__ = ["Chunk", "Completion", "FinishReason", "Logprob", "Prompt", "SamplingParams"]

FinishReason = Literal["stop", "length", "abort", "error"]
"""How a request ended: the model stopped; max_tokens or the context is reached; it was called off;
it made a step fail. Each request ends in exactly one of them."""

Prompt = str | Sequence[int]


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
    logprobs: tuple[dict[int, Logprob], ...] | None = None
    """For each of token_ids, token id -> its logprob there; None where they were not asked for."""
    prompt_logprobs: tuple[dict[int, Logprob] | None, ...] | None = None
    """The same for each of prompt_token_ids; the first one has nothing before it, and so None."""
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
    logprobs: tuple[dict[int, Logprob], ...] | None = None
    """As in `Completion`, for the token_ids of this chunk."""

    def __add__(self, later: Chunk) -> Chunk:
        """This chunk and the one after it as one."""
        return replace(
            later,
            text=self.text + later.text,
            token_ids=self.token_ids + later.token_ids,
            logprobs=None if later.logprobs is None else (self.logprobs or ()) + later.logprobs,
        )
