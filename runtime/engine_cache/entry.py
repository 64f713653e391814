"""An entry of the engine cache: a folder of files, and a manifest that says what they are."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cleave.disk import sync_file, sync_folder
from cleave.export.artifact import digest_file
from cleave.export.manifest import FileDigest
from cleave.runtime.engine_cache.key import EngineKey

MANIFEST = "entry.json"
CHECKED = "checked.json"
"""Beside the manifest: how the files looked when their digests were last compared; see `integrity`."""
FORMAT = 1
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A published engine."""

    folder: Path
    key: EngineKey
    files: Mapping[str, FileDigest]
    """Path inside the folder, with slashes -> what was written there."""
    label: str
    """The model, for people; no part of the key."""
    built: float
    """When it was published, in seconds of Unix time."""
    seconds: float
    """How long the build took."""

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.bytes for file in self.files.values())

    @property
    def last_used(self) -> float:
        """When it was last opened, in seconds of Unix time: the modification time of the manifest."""
        with contextlib.suppress(OSError):
            return (self.folder / MANIFEST).stat().st_mtime
        return self.built

    def touch(self) -> None:
        """Note that it is used now; a cache that cannot be written stays as it is."""
        with contextlib.suppress(OSError):
            os.utime(self.folder / MANIFEST)


def seal(folder: Path, key: EngineKey, *, label: str, built: float, seconds: float) -> Entry:
    """Write the manifest of a finished build, and wait until everything is on the disk.

    Raises ValueError where the build left no file, a link, or a file with a reserved name.
    """
    files: dict[str, FileDigest] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or name in (MANIFEST, CHECKED):
            raise ValueError(f"a build may not leave {name}: it is a link, or the name is the cache's own")
        if path.is_file():
            sync_file(path)
            files[name] = digest_file(path)
        else:
            sync_folder(path)
    if not files:
        raise ValueError("the build left no file")
    entry = Entry(folder, key, files, label, built, seconds)
    manifest = {
        "format": FORMAT,
        "digest": key.digest,
        "key": dict(key.fields),
        "label": label,
        "built": built,
        "seconds": seconds,
        "files": {name: asdict(file) for name, file in files.items()},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
    sync_file(folder / MANIFEST)
    sync_folder(folder)
    return entry


def read_entry(folder: Path) -> Entry | None:
    """The entry in a folder; None where its manifest is missing, damaged, or of another key."""
    try:
        data: Any = json.loads((folder / MANIFEST).read_bytes())
        if data["format"] != FORMAT:
            return None
        entry = Entry(
            folder=folder,
            key=EngineKey.from_json(data["key"]),
            files={_inside(name): _digest(file) for name, file in data["files"].items()},
            label=str(data["label"]),
            built=float(data["built"]),
            seconds=float(data["seconds"]),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return None
    return entry if entry.files and entry.key.digest == folder.name else None


def _digest(file: Any) -> FileDigest:
    digest, size = file["sha256"], file["bytes"]
    if not DIGEST.fullmatch(digest) or type(size) is not int or size < 0:
        raise ValueError("not a digest and a size")
    return FileDigest(digest, size)


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"{name!r} is not inside the entry")
    return name
