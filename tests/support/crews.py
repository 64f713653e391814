"""Jobs for crews that notice when a part runs twice or not at all, or two at once with one thread."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from cleave.addresses import call_with_pointer, int64_at
from cleave.atomics import add, exchange
from cleave.crew.borrowed import BorrowedCrew, can_borrow
from cleave.crew.crew import Crew
from cleave.crew.pool import PoolCrew
from cleave.crew.semaphore import SemaphoreCrew

PARTS, MOST_THREADS = 64, 16
CLASHES, PAUSE, BUSY = PARTS, PARTS + 1, PARTS + 2
"""Places in a job's block, after the number of times that each part ran."""


@numba.cfunc("void(int64, int64, int64)")  # type: ignore[untyped-decorator]
def count(block: Any, part: Any, thread: Any) -> None:
    """Count the part; note where a call with the same thread is under way; pause where asked."""
    words = numba.carray(int64_at(block), (PARTS + 2 + MOST_THREADS,))
    if exchange(words, BUSY + thread, 1) != 0:
        add(words, CLASHES, 1)
    add(words, part, 1)
    if words[PAUSE] != 0:
        call_with_pointer(words[PAUSE], 500 + 300 * (part % 3))
    if exchange(words, BUSY + thread, 0) != 1:
        add(words, CLASHES, 1)


class Counter:
    """A job that counts its parts; with `pauses` each takes about a millisecond, in which nobody computes."""

    def __init__(self, crew: Crew, *, pauses: bool = False) -> None:
        self._crew = crew
        self._words = np.zeros(PARTS + 2 + MOST_THREADS, np.int64)
        if pauses:
            self._words[PAUSE] = ctypes.cast(ctypes.CDLL(None).usleep, ctypes.c_void_p).value

    def run(self, parts: int) -> None:
        self._words[:PARTS] = 0
        self._crew.run(count.address, self._words.ctypes.data, parts)
        assert self._words[:PARTS].tolist() == [1] * parts + [0] * (PARTS - parts)
        assert self._words[CLASHES] == 0


def semaphores(threads: int) -> Crew:
    return SemaphoreCrew(threads, "semaphores")


def pool(threads: int) -> Crew:
    return PoolCrew(threads, "pool")


KINDS: dict[str, Callable[[int], Crew]] = {"semaphores": semaphores, "pool": pool}
if can_borrow():
    KINDS["borrowed"] = BorrowedCrew
