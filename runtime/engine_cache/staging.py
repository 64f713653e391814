"""Where an engine is built before it takes its place in the cache, and how one leaves it."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from cleave.disk import sync_folder
from cleave.runtime.engine_cache.entry import DIGEST
from cleave.runtime.engine_cache.lock import locked_if_free

_STAGING = ".staging-"
_REMOVED = ".removed-"


@contextlib.contextmanager
def staging(directory: Path, digest: str) -> Iterator[Path]:
    """A folder in the cache that is gone on leaving, if it was not published. Hold the lock of the key.

    What a builder of this key left when it was killed is removed first.
    """
    for stale in directory.glob(f"{_STAGING}{digest}-*"):
        shutil.rmtree(stale, ignore_errors=True)
    folder = _new(directory, f"{_STAGING}{digest}-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, target: Path) -> None:
    """Give a finished folder its name; what had the name before is removed. Hold the lock of the key."""
    discard(target)
    folder.rename(target)
    sync_folder(target.parent)


def discard(target: Path) -> None:
    """Take an entry out of the cache at once, and then remove its files. Hold the lock of the key."""
    if not target.exists():
        return
    removed = _new(target.parent, _REMOVED)
    target.rename(removed / target.name)
    shutil.rmtree(removed, ignore_errors=True)


def sweep(directory: Path) -> int:
    """Remove what killed builders and removals left behind; gives back how many folders those were."""
    swept = 0
    for path in (*directory.glob(f"{_REMOVED}*"), *directory.glob(f"{_STAGING}*")):
        digest = path.name.removeprefix(_STAGING).partition("-")[0]
        if path.name.startswith(_REMOVED):
            shutil.rmtree(path, ignore_errors=True)
        elif DIGEST.fullmatch(digest):
            with locked_if_free(directory, digest) as is_free:
                if is_free:  # else its builder lives
                    shutil.rmtree(path, ignore_errors=True)
        swept += not path.exists()
    return swept


def _new(directory: Path, prefix: str) -> Path:
    """A new folder with the permissions that others get; those of tempfile are for one user alone."""
    folder = directory / f"{prefix}{uuid.uuid4().hex}"
    folder.mkdir()
    return folder
