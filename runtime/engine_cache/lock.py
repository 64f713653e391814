"""The lock of a key: who holds it may build, replace or remove the entry of that key."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from cleave.disk import is_disk_full, is_read_only
from cleave.errors import CacheError
from cleave.runtime.engine_cache.directory import DIRECTORY_VARIABLE
from cleave.runtime.engine_cache.key import EngineKey

_log = logging.getLogger("cleave")
_LOCKS = ".locks"
_POLL_SECONDS = 0.05
_QUIET_SECONDS = 0.5
"""How long to wait before saying so; a removal is over sooner."""


@contextlib.contextmanager
def building(directory: Path, key: EngineKey) -> Iterator[None]:
    """The sole right to build a key, among processes and threads. Waits, and says what for.

    A builder that dies gives it back. Lock files stay: removing one under a waiting process would let
    two build at once. Raises CacheError where locks cannot be had, OSError where the folder cannot be
    written or is full.
    """
    try:
        path = _path(directory, key.digest)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=_QUIET_SECONDS, poll_interval=_POLL_SECONDS)
        except Timeout:
            _log.warning("another process%s builds this %s engine; waiting for it", _holder(path), key.kind)
            lock.acquire(poll_interval=_POLL_SECONDS)
    except (OSError, NotImplementedError) as error:
        if is_read_only(error) or is_disk_full(error):
            raise
        raise CacheError(
            f"the engine cache {directory} cannot be used ({error}); "
            f"set {DIRECTORY_VARIABLE} to a folder on a local disk"
        ) from None
    try:
        with contextlib.suppress(OSError):
            path.write_text(str(os.getpid()), "utf-8")
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def locked_if_free(directory: Path, digest: str) -> Iterator[bool]:
    """The lock of a key if it can be had; False, without waiting, where another process has it."""
    lock = None
    with contextlib.suppress(Timeout, OSError, NotImplementedError):
        waiting = FileLock(_path(directory, digest))
        waiting.acquire(timeout=0)
        lock = waiting
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.release()


def _path(directory: Path, digest: str) -> Path:
    folder = directory / _LOCKS
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{digest}.lock"


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return f" ({int(path.read_text('utf-8'))})"
    return ""
