"""Whether other processes took the processor while something was measured."""

from __future__ import annotations

import time
from types import TracebackType

import psutil

BUSY = 0.1
"""Cores used by others from which a measurement counts as disturbed."""


class OthersWatch:
    """`with OthersWatch() as watch: ...`, and then `watch.cores` that other processes used meanwhile."""

    cores: float = 0.0

    def __enter__(self) -> OthersWatch:
        self._began = time.perf_counter()
        self._before = _others()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = time.perf_counter() - self._began
        self.cores = max(0.0, (_others() - self._before) / seconds)


def _others() -> float:
    """Processor seconds that everyone else has used since the machine started, stolen ones included."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # Linux counts guests' time a second time, as user time.
    twice = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    own = psutil.Process().cpu_times()
    return float(sum(times) - idle - twice - own.user - own.system)
