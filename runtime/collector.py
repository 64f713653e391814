"""The reader of a call that waits for whole answers."""

from __future__ import annotations

import threading

from cleave.runtime.mailbox import Wakeups
from cleave.runtime.request import Chunk


class Collector:
    """Counts the chunks of many requests; their texts stay in the generations."""

    is_full = False
    """Whole answers are wanted, so nothing ever lies unread."""

    def __init__(self, answers: int) -> None:
        self.answers = answers
        self._done = threading.Event()
        self.tokens = 0
        self.ended = 0
        if not answers:
            self._done.set()

    def put(self, chunk: Chunk, wakeups: Wakeups) -> None:
        """Count a chunk."""
        self.tokens += len(chunk.token_ids)
        if chunk.finish_reason is not None:
            self.ended += 1
            if self.ended == self.answers:
                self._done.set()

    def wait(self, seconds: float) -> bool:
        """Whether all answers have ended, after at most `seconds`."""
        return self._done.wait(seconds)
