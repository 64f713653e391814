"""Threads that compute together: a job is handed to them in microseconds, and they sleep in between."""

from __future__ import annotations

import ctypes
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cleave import crew_code

_Words = npt.NDArray[np.int64]
_SEMAPHORE_BYTES = 8 * (crew_code.WORDS - crew_code.SEMAPHORE)
_LINE = 64


class Crew(Protocol):
    """Runs jobs, one at a time, on the caller's thread and `threads - 1` more.

    A job is a compiled C function `void (int64 block, int64 part, int64 thread)`. It is called once for
    every part, in any order, side by side; `thread` is below `threads`, and two calls with the same one
    never overlap. Threads that have not woken up when the last part is taken are not waited for: in a
    process that was forked, where they are not, the caller does everything. One caller at a time.
    """

    threads: int

    def run(self, function: int, block: int, parts: int) -> None:
        """Run a job of `parts` parts; `function` and `block` are addresses. All have ended on return.

        A signal that arrives meanwhile, such as Ctrl-C, is handled afterwards.
        """

    def close(self) -> None:
        """End the threads; the crew is not used afterwards. Closing twice is allowed."""


def make_crew(threads: int, name: str) -> Crew:
    """The crew that is fastest here. Its threads are called `name`-1, `name`-2, ..."""
    if threads > 1 and sys.platform != "linux":
        return PoolCrew(threads, name)
    return SemaphoreCrew(threads, name)


class SemaphoreCrew:
    """A `Crew` whose threads stay in compiled code and sleep on POSIX semaphores, which Linux has."""

    def __init__(self, threads: int, name: str) -> None:
        """Start `threads - 1` threads."""
        self.threads = threads
        self._words = crew_words(threads)
        self._end = weakref.finalize(self, lambda: None)
        if threads > 1:
            helpers = _start(self._words, threads, name)
            self._end = weakref.finalize(self, _end, self._words, helpers)

    def run(self, function: int, block: int, parts: int) -> None:
        """See `Crew.run`."""
        crew_code.share(self._words, function, block, parts, min(parts, self.threads) - 1)

    def close(self) -> None:
        """See `Crew.close`."""
        self._end()


class PoolCrew:
    """A `Crew` of Python's threads: works everywhere, and handing a job over takes 50 to 130 microseconds."""

    def __init__(self, threads: int, name: str) -> None:
        """Make a pool of `threads - 1` threads, which start when they are first needed."""
        self.threads = threads
        self._words = crew_words(threads)
        self._pool = ThreadPoolExecutor(max(1, threads - 1), name)

    def run(self, function: int, block: int, parts: int) -> None:
        """See `Crew.run`."""
        crew_code.publish(self._words, function, block, parts, 0)
        helpers = range(1, min(parts, self.threads))
        futures = [self._pool.submit(crew_code.work, self._words, thread) for thread in helpers]
        try:
            crew_code.work(self._words, 0)
        finally:
            # Also where this thread is interrupted: nobody may compute after run() has ended.
            wait([future for future in futures if not future.cancel()])

    def close(self) -> None:
        """See `Crew.close`."""
        self._pool.shutdown()


def crew_words(threads: int) -> _Words:
    """Words that begin at a cache line."""
    line = _LINE // 8
    words = np.zeros(threads * crew_code.WORDS + line, np.int64)
    skip = (-words.ctypes.data % _LINE) // 8
    return words[skip : skip + threads * crew_code.WORDS]


def _start(words: _Words, threads: int, name: str) -> list[threading.Thread]:
    """Make the semaphores and start the threads, which hold the words but not their crew."""
    library: Any = ctypes.CDLL(None, use_errno=True)
    words[crew_code.POST] = ctypes.cast(library.sem_post, ctypes.c_void_p).value
    words[crew_code.WAIT] = ctypes.cast(library.sem_wait, ctypes.c_void_p).value
    for thread in range(threads):
        place = words[thread * crew_code.WORDS + crew_code.SEMAPHORE :].ctypes.data
        if library.sem_init(ctypes.c_void_p(place), 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "sem_init failed")
    helpers = [
        threading.Thread(target=crew_code.serve, args=(words, thread), name=f"{name}-{thread}", daemon=True)
        for thread in range(1, threads)
    ]
    for helper in helpers:
        helper.start()
    return helpers


def _end(words: _Words, helpers: list[threading.Thread]) -> None:
    crew_code.stop(words)
    for helper in helpers:
        helper.join()
