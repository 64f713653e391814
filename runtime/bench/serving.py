"""The figures of a serving benchmark, by the definitions of `vllm bench serve`.

Of each request, times being those at which the client has a message in hand:

- TTFT: from sending the request to the first message that brings a token;
- E2E: from sending the request to the last message that brings a token;
- TPOT: (E2E - TTFT) / (output tokens - 1), of requests with more than one output token;
- ITL: every gap between two messages that bring tokens, of all requests together; a server that puts
  several tokens into a message has fewer and longer gaps.

Mean, median and p99 are over requests (ITL: over gaps), percentiles interpolated linearly. Throughputs are
totals over the time from the first request sent to the last message received. Requests that failed count in
nothing but their number.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Timing:
    """One request, in seconds of the client's clock."""

    sent: float
    messages: tuple[float, ...] = ()
    """When each message that brings a token came."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None
    """Why it failed; the other figures then mean nothing."""

    @property
    def ttft(self) -> float:
        """Time to first token."""
        return self.messages[0] - self.sent

    @property
    def e2e(self) -> float:
        """End-to-end latency."""
        return self.messages[-1] - self.sent

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first; None where there is only one."""
        return (self.e2e - self.ttft) / (self.output_tokens - 1) if self.output_tokens > 1 else None

    @property
    def itl(self) -> list[float]:
        """Inter-token latencies."""
        return [later - earlier for earlier, later in itertools.pairwise(self.messages)]


def serving_figures(timings: Sequence[Timing], seconds: float) -> dict[str, Any]:
    """Counts, rates, and the distributions of the four latencies in milliseconds.

    `seconds` is the duration of the whole run. Needs at least one request that did not fail.
    """
    done = [timing for timing in timings if timing.error is None]
    prompt_tokens = sum(timing.prompt_tokens for timing in done)
    output_tokens = sum(timing.output_tokens for timing in done)
    latencies = {
        "TTFT": [timing.ttft for timing in done],
        "TPOT": [timing.tpot for timing in done if timing.tpot is not None],
        "ITL": [gap for timing in done for gap in timing.itl],
        "E2E": [timing.e2e for timing in done],
    }
    return {
        "completed": len(done),
        "failed": len(timings) - len(done),
        "errors": sorted({timing.error for timing in timings if timing.error is not None}),
        "seconds": seconds,
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "requests_per_s": len(done) / seconds,
        "output_tokens_per_s": output_tokens / seconds,
        "tokens_per_s": (prompt_tokens + output_tokens) / seconds,
        "milliseconds": {name: spread(values) for name, values in latencies.items() if values},
        "samples_ms": {name: [value * 1e3 for value in values] for name, values in latencies.items()},
    }


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Mean, median and 99th percentile, in milliseconds."""
    values = np.array(seconds) * 1e3
    return {
        "mean": float(values.mean()),
        "median": float(np.median(values)),
        "p99": float(np.percentile(values, 99)),
    }
