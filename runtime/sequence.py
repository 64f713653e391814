"""A sequence: the tokens of one request so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from cleave.runtime.request import FinishReason


@dataclass(slots=True, eq=False)
class Sequence:
    """Prompt and generated tokens, and how many of them the KV cache holds."""

    id: int
    prompt: tuple[int, ...]
    max_tokens: int
    """Most tokens to generate; already bounded by the context."""
    stop_token_ids: frozenset[int]
    output: list[int] = field(default_factory=list)
    cached: int = 0
    """Tokens whose k and v are in the KV cache."""
    finish_reason: FinishReason | None = None

    @property
    def length(self) -> int:
        """Tokens in all."""
        return len(self.prompt) + len(self.output)

    @property
    def max_length(self) -> int:
        """Tokens that the sequence can grow to."""
        return len(self.prompt) + self.max_tokens

    def tokens(self, start: int, count: int) -> list[int]:
        """`count` tokens from position `start` on."""
        prompt = len(self.prompt)
        taken = list(self.prompt[start : start + count])
        return taken + self.output[max(0, start - prompt) : max(0, start + count - prompt)]

    def append(self, token: int) -> None:
        """Add a generated token, and end the sequence where that is due."""
        self.output.append(token)
        if token in self.stop_token_ids:
            self.finish_reason = "stop"
        elif len(self.output) >= self.max_tokens:
            self.finish_reason = "length"
