"""A sequence: the tokens of one request so far, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cleave.errors import CleaveError
from cleave.kvcache.keys import PageKeys
from cleave.runtime.request import FinishReason
from cleave.runtime.sampling.logprobs import TokenLogprobs
from cleave.runtime.sampling.state import SamplingState

Status = Literal["new", "waiting", "running", "leaving", "ended"]
"""leaving: without pages, and its last token in flight."""


@dataclass(slots=True, eq=False)
class Sequence:
    """Prompt and generated tokens, and how many of them the KV cache holds.

    Tokens are only ever added. Preemption sets `cached` back and touches nothing else, so what was
    generated is computed again as if it were prompt, and never generated twice.
    """

    id: int
    prompt: tuple[int, ...]
    max_tokens: int
    """Most tokens to generate; already bounded by the context."""
    stop_token_ids: frozenset[int]
    priority: int = 0
    """Lower is more urgent."""
    keys: PageKeys | None = None
    """For the prefix cache; None: its pages are not shared."""
    output: list[int] = field(default_factory=list)
    in_flight: int = 0
    """Tokens that steps under way sample, and that are not in `output` yet."""
    cached: int = 0
    """Tokens whose k and v are in the KV cache, or will be when the steps under way have ended."""
    residence: int = 0
    """How often it has lost its pages: a number for its stay in the KV cache."""
    is_suspect: bool = False
    """Whether a step that it was in failed after its launch; it runs in lockstep until its next token."""
    status: Status = "new"
    urgency: tuple[int, int] = (0, 0)
    """Its place in the order of the scheduler, which sets it; lower is sooner."""
    finish_reason: FinishReason | None = None
    error: str | None = None
    preemptions: int = 0
    found: int | None = None
    """Tokens that the prefix cache had when it was first admitted."""
    sampling: SamplingState | None = None
    """None: the likeliest token at every place, and no logprobs."""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    """One for each of `output`, where they are wanted."""
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    """One for each token of the prompt but the first, as far as it is computed, where they are wanted."""

    def __post_init__(self) -> None:
        if self.keys is not None:
            self.keys.extend(self.prompt)

    @property
    def length(self) -> int:
        """Tokens in all, those in flight included."""
        return len(self.prompt) + len(self.output) + self.in_flight

    @property
    def pending(self) -> int:
        """Tokens that are still to be computed: one where it decodes, none where the last is in flight."""
        return min(self.length, self.max_length - 1) - self.cached

    @property
    def is_exhausted(self) -> bool:
        """Whether its last token by `max_tokens` is in flight, so that nothing of it is left to compute."""
        return len(self.output) + self.in_flight >= self.max_tokens

    @property
    def max_length(self) -> int:
        """Tokens that the sequence can grow to."""
        return len(self.prompt) + self.max_tokens

    def tokens(self, start: int, count: int) -> list[int]:
        """`count` tokens from position `start` on; those in flight are left out."""
        prompt = len(self.prompt)
        if start >= prompt:
            return self.output[start - prompt : start - prompt + count]
        return [*self.prompt[start : start + count], *self.output[: max(0, start + count - prompt)]]

    def append(self, token: int, logprobs: TokenLogprobs | None = None) -> None:
        """Add a generated token, and end the sequence where that is due."""
        self.output.append(token)
        if logprobs is not None:
            self.logprobs.append(logprobs)
        if self.keys is not None:
            self.keys.append(token)
        if self.sampling is not None:
            try:
                self.sampling.accept(token)
            except CleaveError as error:
                self.finish("error", str(error))
                return
        if token in self.stop_token_ids or (self.sampling is not None and self.sampling.is_complete):
            self.finish("stop")
        elif len(self.output) >= self.max_tokens:
            self.finish("length")

    def finish(self, reason: FinishReason, error: str | None = None) -> None:
        """End it, once and for all."""
        if self.finish_reason is not None:
            raise RuntimeError(f"sequence {self.id} ended twice: {self.finish_reason}, then {reason}")
        self.finish_reason, self.error = reason, error
