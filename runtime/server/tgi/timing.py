"""The headers that tell how long an answer took."""

from __future__ import annotations

import time


class Timing:
    """Times of one request, from its body on."""

    def __init__(self) -> None:
        self._began = self._validated = time.perf_counter()

    def validated(self) -> None:
        """The request is in the queue."""
        self._validated = time.perf_counter()

    def headers(self, inputs: str, prompt_tokens: int, generated_tokens: int) -> dict[str, str]:
        """The headers of an answer that is whole. Times are in milliseconds, x-compute-time in seconds."""
        now = time.perf_counter()
        total, inference = (now - self._began) * 1e3, (now - self._validated) * 1e3
        return {
            **self.of_stream(inputs),
            "x-compute-time": f"{total / 1e3:.6f}",
            "x-total-time": f"{total:.0f}",
            "x-validation-time": f"{total - inference:.0f}",
            "x-inference-time": f"{inference:.0f}",
            "x-time-per-token": f"{inference / max(generated_tokens, 1):.0f}",
            "x-prompt-tokens": str(prompt_tokens),
            "x-generated-tokens": str(generated_tokens),
        }

    @classmethod
    def of_stream(cls, inputs: str) -> dict[str, str]:
        """The headers of a stream, of which nothing else is known when it begins."""
        return {"x-compute-type": "cleave", "x-compute-characters": str(len(inputs))}
