"""The threads that ONNX Runtime computes with: a pool for each session, or one for the whole process."""

from __future__ import annotations

import logging
import os

import onnxruntime as ort
import psutil

from cleave.errors import EngineError

_log = logging.getLogger("cleave")


class _ProcessPool:
    """ONNX Runtime makes at most one pool per process and keeps it; this remembers its size."""

    size: int | None = None
    is_wanted = False
    has_warned = False


def physical_cores() -> int:
    """Threads that a computation gets by default: the machine's cores, or the processors that this process
    may run on where those are fewer."""
    return min(psutil.cpu_count(logical=False) or 1, processors())


def processors() -> int:
    """Those that this process may run on, hyperthreads counted. A quota of their time is not seen here."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def checked_threads(threads: int | None) -> int | None:
    """The same number. Raises EngineError for more threads than processors: those would wait for each other.

    ONNX Runtime takes any number, and threads spin while others have the processor that they need.
    """
    if threads is not None and threads > processors():
        raise EngineError(
            f"threads is {threads}, and this process may run on {processors()} processors; "
            f"give at most {processors()}, or leave it away for {physical_cores()}"
        )
    return threads


def use_one_thread_pool(threads: int | None = None) -> int:
    """Let all models of this process compute in one pool of `threads` threads; gives back its size.

    Call it before the first model is loaded, in a process where nobody else uses ONNX Runtime: its
    sessions with threads of their own are refused from then on. The `cleave` command does so. Without it
    each piece of a model has a pool, whose threads have to be woken for every layer: measured on
    16 cores with the 135M shape of benchmarks/split_tax.py, that costs 115 microseconds a layer where
    one pool costs 12. Calling it again changes nothing. Raises EngineError where it is too late.
    """
    if _ProcessPool.size is None:
        size = threads or physical_cores()
        try:
            ort.set_global_thread_pool_sizes(size, 1)
        except Exception as error:  # its errors have no public base
            raise EngineError(
                f"ONNX Runtime cannot make one thread pool for this process any more ({error}); "
                "call use_one_thread_pool() before anything else uses ONNX Runtime"
            ) from None
        _ProcessPool.size = size
    return _ProcessPool.size


def own_process() -> None:
    """Say that this process is Cleave's alone: the first session makes the one pool, for all to come."""
    _ProcessPool.is_wanted = True


def has_one_thread_pool() -> bool:
    """Whether all sessions of this process compute in one pool, made already or with the first of them."""
    return _ProcessPool.size is not None or _ProcessPool.is_wanted


def session_options(threads: int | None = None) -> ort.SessionOptions:
    """Options of a session that computes in the process's pool, or with `threads` threads of its own.

    Warns, once, where that pool has another size than `threads`.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if _ProcessPool.is_wanted:
        use_one_thread_pool(threads)
    if _ProcessPool.size is not None:
        _warn_of_other_size(threads, _ProcessPool.size)
        options.use_per_session_threads = False
        return options
    options.intra_op_num_threads = threads or physical_cores()
    options.inter_op_num_threads = 1
    # Pools that spin would take the processor from each other.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _warn_of_other_size(asked: int | None, size: int) -> None:
    if asked in (None, size) or _ProcessPool.has_warned:
        return
    _ProcessPool.has_warned = True
    _log.warning(
        "%s threads were asked for, and the one pool of this process has %s: its models compute with those; "
        "call use_one_thread_pool(%s) before anything else, or load the model in a process of its own",
        *(asked, size, asked),
    )
