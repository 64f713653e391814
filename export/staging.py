"""Where an export writes before its files take their place in the artifact."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from cleave.disk import is_disk_full, sync_file
from cleave.errors import ExportError
from cleave.export.manifest import MANIFEST

_PREFIX = ".export-"
_LOCK = ".export.lock"
_BEFORE = "before"


@contextlib.contextmanager
def staging(output_dir: Path) -> Iterator[Path]:
    """A folder inside `output_dir` that is gone on leaving, whatever happens.

    What an export killed earlier left behind is removed first. One export at a time writes to an
    artifact; a second one gets ExportError. An `output_dir` made for this is removed again if nothing
    was published into it.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise ExportError(f"output_dir {output_dir} is a file; give a folder")
    made = [folder for folder in (output_dir, *output_dir.parents) if not folder.exists()]
    try:
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ExportError(f"output_dir {output_dir} cannot be made: {error.strerror}") from None
        with _locked(output_dir), _disk_full_explained(output_dir):
            for stale in output_dir.glob(f"{_PREFIX}*/"):
                shutil.rmtree(stale, ignore_errors=True)
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=output_dir))
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # succeeds only where nothing was published


@contextlib.contextmanager
def _locked(output_dir: Path) -> Iterator[None]:
    lock = FileLock(output_dir / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ExportError(f"another export is writing to {output_dir}; wait for it") from None
    except OSError as error:
        raise ExportError(f"cannot write to output_dir {output_dir}: {error.strerror}") from None
    try:
        yield
    finally:
        (output_dir / _LOCK).unlink(missing_ok=True)
        lock.release()


def publish(folder: Path, output_dir: Path) -> None:
    """Move every staged file to its place; the manifest last, so that it never speaks too early.

    Where one cannot be moved, the others are as before.
    """
    names = sorted((path.name for path in folder.iterdir()), key=lambda name: (name == MANIFEST, name))
    for name in names:
        if (output_dir / name).is_dir():
            raise ExportError(f"{output_dir / name} is a folder where a file is to be; move it away")
        sync_file(folder / name)
    before = folder / _BEFORE
    before.mkdir()
    try:
        for name in names:
            if os.path.lexists(output_dir / name):
                (output_dir / name).replace(before / name)
            (folder / name).replace(output_dir / name)
    except BaseException:
        for name in names:
            if os.path.lexists(before / name):
                (before / name).replace(output_dir / name)
            elif not (folder / name).exists():
                (output_dir / name).unlink(missing_ok=True)
        raise


def require_space(output_dir: Path, needed: int) -> None:
    """Raises ExportError, before anything is written, where the disk has fewer than `needed` bytes."""
    free = shutil.disk_usage(output_dir).free
    if free < needed:
        raise ExportError(
            f"the export needs {needed / 2**30:.2f} GiB in {output_dir}, and {free / 2**30:.2f} GiB are free"
        )


@contextlib.contextmanager
def _disk_full_explained(output_dir: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if is_disk_full(error):
            raise ExportError(
                f"the disk of {output_dir} is full; the export was undone. Free some space and run it again"
            ) from None
        raise
