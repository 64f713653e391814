"""Is an entry what was published? Digests are compared again only where a file looks touched.

Reading gigabytes at every start would cost more than some builds. So size, times and inode of every file
are noted when its digest is compared; while they are the same the file is taken to be. Damage that leaves
all of them alone (a failing disk) is found by a full check.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from cleave.export.artifact import digest_file
from cleave.runtime.engine_cache.entry import CHECKED, Entry

_SETTLED = 2_000_000_000
"""Nanoseconds. A file younger than this may change again without a new time: clocks of filesystems
are coarse, that of FAT by two seconds. It is compared again the next time."""


def damage(entry: Entry, *, full: bool = False) -> str | None:
    """What is wrong with the files of an entry, in a few words; None where nothing is.

    `full` compares every digest, however the files look.
    """
    known = {} if full else _checked(entry.folder)
    seen: dict[str, list[int]] = {}
    for name, expected in entry.files.items():
        path = entry.folder / name
        try:
            look = _look(path)
            if not path.is_file() or path.is_symlink():
                return f"{name} is not a file"
            if look[0] != expected.bytes:
                return f"{name} has {look[0]} bytes instead of {expected.bytes}"
            if known.get(name) != look and digest_file(path) != expected:
                return f"{name} has another SHA-256"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        seen[name] = look
    if seen != known:
        note_checked(entry, seen)
    return None


def note_checked(entry: Entry, seen: dict[str, list[int]] | None = None) -> None:
    """Note how files look that have the digests of the manifest; a cache that cannot be written stays."""
    if seen is None:
        seen = {name: _look(entry.folder / name) for name in entry.files}
    latest = time.time_ns() - _SETTLED
    settled = {name: look for name, look in seen.items() if max(look[1:3]) < latest}
    partial = entry.folder / f".{CHECKED}.{os.getpid()}"
    with contextlib.suppress(OSError):
        partial.write_text(json.dumps(settled), "utf-8")
        partial.replace(entry.folder / CHECKED)


def _look(path: Path) -> list[int]:
    found = path.lstat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _checked(folder: Path) -> dict[str, Any]:
    try:
        noted = json.loads((folder / CHECKED).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return noted if isinstance(noted, dict) else {}
