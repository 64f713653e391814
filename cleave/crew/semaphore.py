"""A crew of threads that stay in compiled code and sleep on semaphores."""

from __future__ import annotations

import ctypes
import platform
import threading
import weakref
from typing import Any

from cleave.crew import code


def has_semaphores() -> bool:
    """Whether the system has semaphores without a name; macOS has the functions, but not what they do."""
    return platform.system() == "Linux"


class SemaphoreCrew:
    """A `Crew` with POSIX semaphores without a name, which Linux has.

    In a process that was forked, where its threads are not, the caller does everything.
    """

    means = "threads of its own, asleep between two jobs"

    def __init__(self, threads: int, name: str) -> None:
        """Start `threads - 1` threads. Raises OSError or RuntimeError where there are no more to be had."""
        self.threads = threads
        self._words = code.new_words(threads)
        library: Any = ctypes.CDLL(None, use_errno=True)
        for place, function in ((code.POST, library.sem_post), (code.WAIT, library.sem_wait)):
            self._words[place] = ctypes.cast(function, ctypes.c_void_p).value or 0
        for thread in range(threads):
            semaphore = self._words[thread * code.WORDS + code.SEMAPHORE :].ctypes.data
            if library.sem_init(ctypes.c_void_p(semaphore), 0, 0) != 0:
                raise OSError(ctypes.get_errno(), "no semaphore can be made")
        helpers: list[threading.Thread] = []
        # The threads hold the words but not their crew, so one that is not closed ends when it is forgotten.
        self._end = weakref.finalize(self, _end, self._words, helpers)
        try:
            for thread in range(1, threads):
                helper = threading.Thread(
                    target=code.serve, args=(self._words, thread), name=f"{name}-{thread}", daemon=True
                )
                helper.start()
                helpers.append(helper)
        except BaseException:
            self._end()
            raise

    def run(self, function: int, block: int, parts: int) -> None:
        """See `Crew.run`."""
        code.share(self._words, function, block, parts, min(parts, self.threads) - 1)

    def close(self) -> None:
        """See `Crew.close`."""
        self._end()


def _end(words: Any, helpers: list[threading.Thread]) -> None:
    code.stop(words)
    for helper in helpers:
        helper.join()
