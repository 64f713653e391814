"""How Triton's kernels are launched, and how they are compiled before that, many at a time."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_MOST_THREADS = 32


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Launch a kernel whose first argument is a tensor; if that is on the device "meta", only compile it.

    So the same calls that a step makes, made beforehand with tensors that have no data, compile just what
    the step needs: their dtypes and numbers are all that a kernel is compiled for. Such tensors count as
    aligned to 16 bytes, as every new tensor is.
    """
    if arguments[0].device.type == "meta":
        kernel.warmup(*arguments, grid=grid, **options)
    else:
        kernel[grid](*arguments, **options)


@contextlib.contextmanager
def compiled_side_by_side() -> Iterator[None]:
    """What is compiled in here is, each kernel once, by as many threads as there are cores; waits at the end.

    Triton works without Python's lock for most of it. A kernel that cannot be compiled says so where it is
    launched. Launch nothing in here: it would wait for its compilation.
    """
    from triton.runtime._async_compile import AsyncCompileMode, active_mode

    with ThreadPoolExecutor(_threads(), "compile") as threads:
        try:
            with AsyncCompileMode(threads, ignore_errors=True):
                yield
        finally:
            active_mode.set(None)  # Triton leaves it where a signal ends the wait


def _threads() -> int:
    # Windows has no affinity to ask for.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(_MOST_THREADS, cores))
