"""The scheduler: which tokens of which sequences run in the next step."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from cleave.kvcache.budget import pages_for
from cleave.runtime.sequence import Sequence


@dataclass(frozen=True, slots=True)
class ScheduledChunk:
    """Tokens `start:start + count` of a sequence. If they reach its end, the step yields its next token."""

    sequence: Sequence
    start: int
    count: int

    @property
    def samples(self) -> bool:
        """Whether the logits of the last token are wanted."""
        return self.start + self.count == self.sequence.length


Step = tuple[ScheduledChunk, ...]


class Scheduler:
    """Decides; runs nothing, reads no clock, starts no thread. The same calls give the same steps.

    Policy: first come, first served. Each step takes one token of every sequence that is decoding, then
    as much of the oldest prompts as the token budget leaves: a long prompt runs in chunks and never
    stalls the others. A request is admitted once the pages that it may need at its longest are free of
    others' claims, so a running sequence never lacks a page.
    """

    def __init__(self, *, max_tokens: int, max_sequences: int, num_pages: int, page_size: int) -> None:
        """At most `max_tokens` rows a step, `max_sequences` running at once, over `num_pages` KV pages."""
        self._max_tokens = max_tokens
        self._max_sequences = min(max_sequences, max_tokens)
        self._unclaimed = num_pages
        self._page_size = page_size
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return not self._waiting and not self._running

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. It must fit the KV cache when it is alone."""
        self._waiting.append(sequence)

    def admit(self) -> list[Sequence]:
        """Move waiting sequences to the running ones, in order, while they fit; gives back those moved."""
        admitted: list[Sequence] = []
        while self._waiting and len(self._running) < self._max_sequences:
            claim = self._claim(self._waiting[0])
            if claim > self._unclaimed:
                break
            self._unclaimed -= claim
            admitted.append(self._waiting.popleft())
            self._running.append(admitted[-1])
        return admitted

    def schedule(self) -> Step:
        """The next step; empty where nothing runs."""
        budget = self._max_tokens
        chunks: list[ScheduledChunk] = []
        decoding = [sequence for sequence in self._running if sequence.length - sequence.cached == 1]
        prefilling = [sequence for sequence in self._running if sequence.length - sequence.cached > 1]
        for sequence in (*decoding, *prefilling):
            count = min(sequence.length - sequence.cached, budget)
            if count > 0:
                chunks.append(ScheduledChunk(sequence, sequence.cached, count))
                budget -= count
        return tuple(chunks)

    def commit(self, step: Step, tokens: Mapping[int, int]) -> list[Sequence]:
        """Take in the results of a step: the next token of each sequence that has one, by sequence id.

        Gives back the sequences that ended with it. A step that failed is simply not committed.
        """
        for chunk in step:
            chunk.sequence.cached += chunk.count
            if chunk.samples:
                chunk.sequence.append(tokens[chunk.sequence.id])
        ended = [chunk.sequence for chunk in step if chunk.sequence.finish_reason is not None]
        for sequence in ended:
            self._leave(sequence)
        return ended

    def abort(self, sequence: Sequence) -> bool:
        """Take a sequence out, waiting or running; True where it was running and so has pages to free."""
        if sequence in self._running:
            self._leave(sequence)
            return True
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        return False

    def _leave(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._unclaimed += self._claim(sequence)

    def _claim(self, sequence: Sequence) -> int:
        # The last generated token is never fed back, so its k and v are never stored.
        return pages_for(sequence.max_length - 1, self._page_size)
