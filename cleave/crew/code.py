"""What the threads of a `Crew` run: compiled, without the GIL.

They share one array of int64 words. A job is a number of parts that is counted down: whoever lowers
LEFT owns a part. Once all parts are owned nothing is left for a thread that comes late, so nobody waits
for one that is slow to wake up or that is not there.
"""

from __future__ import annotations

import sys
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

import cleave.addresses
import cleave.atomics
from cleave.addresses import call, call_with_five, call_with_pointer, int64_at
from cleave.atomics import add, compare_exchange, exchange, load, pause, store
from cleave.compiled import callback, part, sources_digest, whole

WORDS = 32
"""Words of each thread, the caller's first: four cache lines, so that threads which sleep disturb nobody."""

# Words of the job.
LEFT, FUNCTION, BLOCK, HELPERS, STOP = range(5)
"""Parts that nobody owns yet; what to call, and with what; how many may help the caller; whether to end."""
POST, WAIT = 5, 6
"""Addresses of sem_post and sem_wait, where the crew has threads of its own that sleep."""
PARALLEL_FOR, HELP = 5, 6
"""Addresses of what hands a function to other threads, and of `help_out`, where it borrows them."""
RUNNING = 8
"""Parts that have not ended yet."""

JOB = 3
"""Words that say what a job is: function, block, parts."""

# Words of a series of jobs; see `cleave.crew.series`.
NEXT, ENTRIES, ENTRY_JOBS, THREADS = range(4)
"""The address of the next entry, how many are left, jobs of an entry, and threads that may take part."""

# Words of each thread.
ASLEEP, SEMAPHORE = 9, 16
"""Whether it sleeps or is about to; a sem_t, for which there are 16 words."""

SERIES = WORDS
"""Words before those of the threads, where jobs run in series."""

_LINE = 64
_CALLER = 0
_SPINS = 1000
"""How often the caller looks whether the others have ended before it sleeps: about 40 microseconds."""


def new_words(threads: int) -> npt.NDArray[np.int64]:
    """Words for so many threads, the first of them at a cache line."""
    words = np.zeros(threads * WORDS + _LINE // 8, np.int64)
    skip = (-words.ctypes.data % _LINE) // 8
    return words[skip : skip + threads * WORDS]


@part
def _semaphore(words: Any, thread: Any) -> Any:
    return words.ctypes.data + (thread * WORDS + SEMAPHORE) * words.itemsize


@part
def _wake(words: Any, thread: Any) -> None:
    """Wake a thread if it sleeps; whoever changes ASLEEP back is the one that posts."""
    asleep = thread * WORDS + ASLEEP
    if load(words, asleep) and exchange(words, asleep, 0):
        call_with_pointer(load(words, POST), _semaphore(words, thread))


@part
def _wake_next(words: Any, thread: Any) -> None:
    """Wake the two threads that are this one's to wake, so that waking sixteen takes four turns."""
    for other in range(2 * thread + 1, min(2 * thread + 2, load(words, HELPERS)) + 1):
        _wake(words, other)


@part
def _may_sleep(words: Any, thread: Any) -> Any:
    if thread == _CALLER:
        return load(words, RUNNING) > 0
    return load(words, LEFT) == 0 and load(words, STOP) == 0


@part
def _sleep(words: Any, thread: Any) -> None:
    """Sleep until woken; not where there is something to do by now."""
    asleep = thread * WORDS + ASLEEP
    store(words, asleep, 1)
    if not _may_sleep(words, thread) and exchange(words, asleep, 0):
        return
    # There is nothing to do, or somebody has found this thread asleep and its post is on the way. Only a
    # signal of the operating system ends the wait early.
    while call_with_pointer(load(words, WAIT), _semaphore(words, thread)) != 0:
        pass


@part
def _work(words: Any, thread: Any) -> None:
    """Take parts of the present job, the last first, until none is left."""
    left = load(words, LEFT)
    if left > 0:
        _wake_next(words, thread)
    while left > 0:
        seen = compare_exchange(words, LEFT, left, left - 1)
        if seen != left:
            left = seen
            continue
        # Until this part has ended the job cannot, nor can another begin: what is read here belongs to it.
        call(load(words, FUNCTION), load(words, BLOCK), left - 1, thread)
        if add(words, RUNNING, -1) == 1:
            _wake(words, _CALLER)
        left = load(words, LEFT)


@part
def _publish(words: Any, function: Any, block: Any, parts: Any, helpers: Any) -> None:
    store(words, FUNCTION, function)
    store(words, BLOCK, block)
    store(words, HELPERS, helpers)
    store(words, RUNNING, parts)
    store(words, LEFT, parts)


def _compile(source_digest: int) -> tuple[Any, ...]:
    """Compile what threads run, or find it in numba's cache; the digest is part of its key there."""

    @whole("void(int64[::1], int64, int64, int64, int64)")
    def publish(words: Any, function: Any, block: Any, parts: Any, helpers: Any) -> None:
        """Begin a job: `parts` parts, with which `helpers` threads may help."""
        _ = source_digest
        _publish(words, function, block, parts, helpers)

    @whole("void(int64[::1], int64)")
    def work(words: Any, thread: Any) -> None:
        """Take parts of the present job until none is left."""
        _ = source_digest
        _work(words, thread)

    @whole("void(int64[::1], int64, int64, int64, int64)")
    def share(words: Any, function: Any, block: Any, parts: Any, helpers: Any) -> None:
        """Run a job with threads that `serve`, and return when all its parts have ended."""
        _ = source_digest
        _publish(words, function, block, parts, helpers)
        _work(words, _CALLER)
        spins = 0
        while load(words, RUNNING) > 0:
            if spins < _SPINS:
                spins += 1
                pause()
            else:
                _sleep(words, _CALLER)

    @whole("void(int64[::1], int64)")
    def serve(words: Any, thread: Any) -> None:
        """Help with every job until `stop`, asleep between two of them."""
        _ = source_digest
        while load(words, STOP) == 0:
            _work(words, thread)
            _sleep(words, thread)

    @whole("void(int64[::1])")
    def stop(words: Any) -> None:
        """End every `serve`."""
        _ = source_digest
        store(words, STOP, 1)
        for thread in range(1, len(words) // WORDS):
            _wake(words, thread)

    @callback("void(int64, int64)")
    def help_out(address: Any, thread: Any) -> None:
        """`work` for others than Python: the words are at `address`."""
        _ = source_digest
        _work(numba.carray(int64_at(address), ((thread + 1) * WORDS,)), thread)

    @callback("int64(int64, int64)")
    def borrow(address: Any, context: Any) -> Any:
        """Run the job at `address` with the threads of ONNX Runtime's context; gives back its status."""
        _ = source_digest
        words = numba.carray(int64_at(address), (WORDS,))
        return call_with_five(
            load(words, PARALLEL_FOR), context, load(words, HELP), load(words, HELPERS) + 1, 0, address
        )

    @callback("int64(int64, int64)")
    def run_entry(address: Any, context: Any) -> Any:
        """Run the next entry of the series at `address`, if one is left, as `borrow` does a job."""
        _ = source_digest
        series = numba.carray(int64_at(address), (SERIES,))
        if series[ENTRIES] == 0:
            return 0
        at = address + SERIES * series.itemsize
        words = numba.carray(int64_at(at), (WORDS,))
        jobs = numba.carray(int64_at(series[NEXT]), (series[ENTRY_JOBS], JOB))
        series[NEXT] += series[ENTRY_JOBS] * JOB * series.itemsize
        series[ENTRIES] -= 1
        for job in range(len(jobs)):
            function, block, parts = jobs[job, 0], jobs[job, 1], jobs[job, 2]
            helpers = min(parts, series[THREADS]) - 1
            if parts > 0:
                _publish(words, function, block, parts, helpers)
            if helpers > 0:
                status = call_with_five(
                    load(words, PARALLEL_FOR), context, load(words, HELP), helpers + 1, 0, at
                )
                if status != 0:
                    return status
            elif parts > 0:
                _work(words, _CALLER)
        return 0

    @callback("void(int64)")
    def forget(address: Any) -> None:
        """Nothing: the words are not this function's to free."""

    return publish, work, share, serve, stop, help_out, borrow, run_entry, forget


publish, work, share, serve, stop, help_out, borrow, run_entry, forget = _compile(
    sources_digest(cleave.addresses, cleave.atomics, sys.modules[__name__])
)
