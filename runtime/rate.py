"""How many tokens a second, lately."""

from __future__ import annotations

import threading
from collections import deque


class Rate:
    """Events per second over the last `window` seconds; written by one thread, read by any."""

    def __init__(self, window: float = 10.0) -> None:
        self._window = window
        self._lock = threading.Lock()
        self._events: deque[tuple[float, int]] = deque()
        self._sum = 0

    def add(self, now: float, count: int) -> None:
        """`count` events at the time `now`, in seconds of a clock that only goes forward."""
        with self._lock:
            self._events.append((now, count))
            self._sum += count
            self._forget(now)

    def per_second(self, now: float) -> float:
        """Events per second in the window that ends `now`."""
        with self._lock:
            self._forget(now)
            if not self._events:
                return 0.0
            # A run that began inside the window is not divided by the time before it.
            return self._sum / max(now - self._events[0][0], 1.0)

    def _forget(self, now: float) -> None:
        while self._events and self._events[0][0] < now - self._window:
            self._sum -= self._events.popleft()[1]
