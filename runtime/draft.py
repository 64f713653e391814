"""A step being put together: what it holds, and what it can still take."""

from __future__ import annotations

from dataclasses import dataclass, field

from cleave.kvcache.budget import pages_for
from cleave.runtime.sequence import Sequence
from cleave.runtime.step import ScheduledChunk


@dataclass(slots=True)
class Draft:
    """The chunks so far, and the tokens and pages that are left for more."""

    page_size: int
    budget: int
    """Tokens that it can still take."""
    room: int
    """Available pages that it has not promised."""
    scores: int
    """Rows that may still score tokens of prompts."""
    outstanding: int = 0
    """Pages that the running sequences lack for the tokens they have, promised ones included."""
    chunks: dict[int, ScheduledChunk] = field(default_factory=dict)

    def put(self, sequence: Sequence, count: int) -> None:
        """Add the next `count` tokens of a sequence."""
        start = sequence.cached
        samples = start + count == sequence.length
        chunk = ScheduledChunk(sequence, start, count, samples, sequence.residence)
        self.chunks[sequence.id] = chunk
        self.budget -= count
        self.scores -= len(chunk.scored)

    def take(self, sequence: Sequence) -> int:
        """Take the chunk of a sequence out again, if it has one; the pages that were promised to it."""
        chunk = self.chunks.pop(sequence.id, None)
        if chunk is None:
            return 0
        self.budget += chunk.count
        self.scores += len(chunk.scored)
        return self.new_pages(chunk.start, chunk.count)

    def missing(self, sequence: Sequence) -> int:
        """Pages that a running sequence lacks for the tokens it has."""
        return self.new_pages(sequence.cached, sequence.pending)

    def new_pages(self, start: int, count: int) -> int:
        """Pages that `count` tokens from position `start` on begin."""
        return pages_for(start + count, self.page_size) - pages_for(start, self.page_size)

    def fitting(self, sequence: Sequence, wanted: int) -> int:
        """How many of the next tokens have a place in the room that is left."""
        pages = pages_for(sequence.cached, self.page_size) + self.room
        return min(wanted, pages * self.page_size - sequence.cached)
