"""Threads that compute together, to whom a job is handed in microseconds."""

from __future__ import annotations

import logging
from typing import Protocol

from cleave.crew.pool import PoolCrew
from cleave.crew.semaphore import SemaphoreCrew, has_semaphores
from cleave.errors import EngineError
from cleave.threads import has_one_thread_pool

_log = logging.getLogger("cleave")


class Crew(Protocol):
    """Runs jobs, one at a time, on the caller's thread and `threads - 1` more.

    A job is a compiled C function `void (int64 block, int64 part, int64 thread)`. It is called once for
    every part, in any order, side by side; `thread` is below `threads`, and two calls with the same one never
    overlap. Threads that have not woken up when the last part is taken are not waited for. Used by one
    caller at a time.
    """

    threads: int
    means: str
    """Whose threads they are, for people."""

    def run(self, function: int, block: int, parts: int) -> None:
        """Run a job of `parts` parts; `function` and `block` are addresses. All have ended on return.

        A signal that arrives meanwhile, such as Ctrl-C, is handled afterwards.
        """

    def close(self) -> None:
        """End the threads; the crew is not used afterwards. Closing twice is allowed."""


def make_crew(threads: int, name: str) -> Crew:
    """The crew that is fastest here; threads of its own are called `name`-1, `name`-2, ..."""
    if threads > 1 and has_one_thread_pool():
        # Late, since it is not for every platform.
        from cleave.crew.borrowed import BorrowedCrew, can_borrow

        if can_borrow():
            try:
                return BorrowedCrew(threads)
            except (EngineError, OSError) as error:
                _log.warning(
                    "ONNX Runtime does not lend its threads, so %s gets its own: %s",
                    name,
                    error,
                )
    return SemaphoreCrew(threads, name) if has_semaphores() else PoolCrew(threads, name)
