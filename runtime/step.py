"""What runs in one step, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from cleave.runtime.cuts import scored_positions
from cleave.runtime.sampling.logprobs import TokenLogprobs
from cleave.runtime.sequence import Sequence


@dataclass(slots=True)
class ScheduledChunk:
    """Tokens `start:start + count` of a sequence."""

    sequence: Sequence
    start: int
    count: int
    samples: bool
    """Whether they reach its end, so that the step yields its next token."""
    residence: int = 0
    """Which stay of the sequence in the KV cache they belong to."""
    is_stored: bool = False
    """Whether they are in the KV cache: the step was launched, or committed, and they were not left out."""
    is_void: bool = False
    """Whether what comes of them counts for nothing, since the token before them was lost."""

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + self.count

    @property
    def scored(self) -> range:
        """Positions whose logits score a token of the prompt."""
        return scored_positions(self.sequence, self.start, self.end)


Step = tuple[ScheduledChunk, ...]


@dataclass(slots=True)
class StepOutcome:
    """The results of a step, filled in as its parts end; what is in none of them did not run."""

    tokens: dict[int, int] = field(default_factory=dict)
    """Sequence id -> its next token."""
    errors: dict[int, str] = field(default_factory=dict)
    """Sequence id -> why it cannot go on."""
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    """Sequence id -> the logprobs of its next token, where they are wanted."""
    prompt_logprobs: dict[int, list[TokenLogprobs]] = field(default_factory=dict)
    """Sequence id -> those of the next tokens of its prompt."""
    lost: set[int] = field(default_factory=set)
    """Ids of sequences whose part of a launched step failed; they are computed again from their start."""
