"""Locks on an entry: shared while it is used, exclusive while it is removed.

The lock is on the entry's own manifest, so that a cache on a read-only filesystem can be pinned too, and
the kernel gives it back when a process dies. Windows has no such locks: there the open file itself keeps
its folder from being moved away.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_TAKEN = (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK)


class Pin:
    """An entry that cannot go away."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Let the entry go. Doing it again does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def pin(manifest: Path) -> Pin | None:
    """Keep an entry from being removed; None where it is not there, or is being removed.

    A filesystem without locks gives a pin that holds nobody back.
    """
    return _locked(manifest, exclusive=False)


def claim(manifest: Path) -> Pin | None:
    """The sole right to an entry; None where somebody uses it, or it is not there."""
    return _locked(manifest, exclusive=True)


def _locked(manifest: Path, *, exclusive: bool) -> Pin | None:
    try:
        descriptor = os.open(manifest, os.O_RDWR if exclusive else os.O_RDONLY)
    except OSError:  # not there; or, to claim it, another user's or on a read-only filesystem
        return None
    held = Pin(descriptor)
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as error:
        if exclusive or error.errno in _TAKEN:
            held.release()
            return None
    try:
        is_there = os.path.samestat(os.fstat(descriptor), manifest.stat())
    except OSError:
        is_there = False
    if not is_there:  # it was moved away between the opening and the lock
        held.release()
        return None
    return held
