"""The headers that tell how long an answer took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from cleave.runtime.observer import AnswerReport, StepReport


class QueueTimes:
    """How long requests waited for their first step: an `EngineObserver`."""

    def __init__(self) -> None:
        self._waited: dict[str, float] = {}

    @contextmanager
    def of(self, request_id: str) -> Iterator[None]:
        """Note the times of a request meanwhile."""
        self._waited[request_id] = 0.0
        try:
            yield
        finally:
            self._waited.pop(request_id, None)

    def seconds(self, request_id: str) -> float:
        """How long the answers of a request waited, the longest of them."""
        return self._waited.get(request_id, 0.0)

    def stepped(self, step: StepReport) -> None:
        """See `EngineObserver`."""

    def answered(self, answer: AnswerReport) -> None:
        """See `EngineObserver`."""
        waited = self._waited.get(answer.request_id)
        if waited is not None:
            self._waited[answer.request_id] = max(waited, answer.queue_seconds)


class Timing:
    """Times of one request, from its body on."""

    def __init__(self) -> None:
        self._began = self._validated = time.perf_counter()

    def validated(self) -> None:
        """The request is in the queue."""
        self._validated = time.perf_counter()

    def headers(self, inputs: str, prompt_tokens: int, tokens: int, queued: float) -> dict[str, str]:
        """The headers of an answer that is whole and waited so many seconds in the queue.

        Times are in milliseconds, x-compute-time is in seconds.
        """
        total = time.perf_counter() - self._began
        validation = self._validated - self._began
        inference = max(total - validation - queued, 0.0)
        return {
            **self.of_stream(inputs),
            "x-compute-time": f"{total:.6f}",
            "x-total-time": _milliseconds(total),
            "x-validation-time": _milliseconds(validation),
            "x-queue-time": _milliseconds(queued),
            "x-inference-time": _milliseconds(inference),
            "x-time-per-token": _milliseconds(inference / max(tokens, 1)),
            "x-prompt-tokens": str(prompt_tokens),
            "x-generated-tokens": str(tokens),
        }

    @classmethod
    def of_stream(cls, inputs: str) -> dict[str, str]:
        """The headers of a stream, of which nothing else is known when it begins."""
        return {"x-compute-type": "cleave", "x-compute-characters": str(len(inputs))}


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1e3))
