"""What an engine thread is doing, in numbers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from cleave.kvcache.page_manager import PageManager
from cleave.runtime.rate import Rate
from cleave.runtime.request import FinishReason
from cleave.runtime.scheduler import Scheduler
from cleave.runtime.step import Step, StepOutcome


@dataclass(frozen=True, slots=True)
class Stats:
    """A snapshot. Counts are since the model was loaded; a step may be under way meanwhile."""

    running: int
    """Sequences that hold pages."""
    waiting: int
    """Sequences in the queue, those that were preempted included."""
    pages: int
    """Pages of the KV cache, each `page_size` tokens: those below and the free ones."""
    pages_used: int
    pages_cached: int
    """Pages that only the prefix cache keeps, until somebody needs their place."""
    page_size: int
    steps: int
    prompt_tokens: int
    """Tokens of prompts that were computed, those of preempted sequences again."""
    cached_prompt_tokens: int
    """Tokens that the prefix cache had."""
    generated_tokens: int
    preemptions: int
    ended: Mapping[FinishReason, int]
    """Answers by their finish reason."""
    tokens_per_second: float
    """Tokens generated a second, over the last ten."""

    @property
    def pages_free(self) -> int:
        """Pages that hold nothing."""
        return self.pages - self.pages_used - self.pages_cached


class StatsCounter:
    """Counts for one engine thread, which alone writes; anybody may ask for a snapshot."""

    def __init__(self, scheduler: Scheduler, pages: PageManager) -> None:
        self._scheduler = scheduler
        self._pages = pages
        self._rate = Rate()
        self._steps = 0
        self._prompt_tokens = 0
        self._generated = 0
        self._ended: Counter[FinishReason] = Counter()

    def count_step(self, step: Step, outcome: StepOutcome) -> None:
        """A step that was committed."""
        generated = len(outcome.tokens)
        self._steps += 1
        self._generated += generated
        # A decoding chunk computes the token that was generated before it.
        self._prompt_tokens += sum(chunk.count for chunk in step if chunk.start < len(chunk.sequence.prompt))
        self._rate.add(time.monotonic(), generated)

    def count_end(self, reason: FinishReason) -> None:
        """An answer that ended."""
        self._ended[reason] += 1

    def snapshot(self) -> Stats:
        """The numbers of this moment."""
        pages = self._pages
        cached = pages.cached_pages
        return Stats(
            running=self._scheduler.running,
            waiting=self._scheduler.waiting,
            pages=pages.num_pages,
            pages_used=pages.num_pages - pages.free_pages - cached,
            pages_cached=cached,
            page_size=pages.page_size,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            cached_prompt_tokens=pages.stats.found,
            generated_tokens=self._generated,
            preemptions=self._scheduler.preemptions,
            ended=dict(self._ended),
            tokens_per_second=self._rate.per_second(time.monotonic()),
        )
