"""What a folder that is published whole needs of the disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that there is no more room. Rust libraries say it as a plain Exception."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return any(f"(os error {number})" in str(error) for number in _FULL)


def is_read_only(error: BaseException) -> bool:
    """Whether an error says that nothing may be written there."""
    return isinstance(error, OSError) and error.errno in _READ_ONLY


def sync_file(path: Path) -> None:
    """Wait until a file's data is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk; Windows has no such thing and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
