"""What lies in an engine cache: its entries, the nearest to a key, and how they leave it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from cleave.runtime.engine_cache.entry import DIGEST, MANIFEST, Entry, read_entry
from cleave.runtime.engine_cache.key import ARTIFACT_FIELDS, EngineKey
from cleave.runtime.engine_cache.lock import locked_if_free
from cleave.runtime.engine_cache.pin import claim
from cleave.runtime.engine_cache.staging import discard

_log = logging.getLogger("cleave")


@dataclass(frozen=True, slots=True)
class Removal:
    """What became of an entry that was to go."""

    entry: Entry
    is_gone: bool
    """False where a process uses it."""


def entries(directory: Path) -> list[Entry]:
    """Every readable entry, the one used last first."""
    found = (read_entry(folder) for folder in _folders(directory))
    return sorted(
        (entry for entry in found if entry is not None), key=lambda entry: (-entry.last_used, entry.folder)
    )


def remove_broken(directory: Path) -> int:
    """Remove entries whose manifest cannot be read; gives back how many. They are never used."""
    removed = 0
    for folder in _folders(directory):
        if read_entry(folder) is None:
            with locked_if_free(directory, folder.name) as is_free:
                if is_free and folder.exists() and read_entry(folder) is None:
                    discard(folder)
                    removed += 1
    return removed


def nearest(directory: Path, key: EngineKey) -> Entry | None:
    """The entry of the same kind that is most like a key: of the same artifact first, then by the number
    of fields that differ, then the one used last. None where there is none of this kind.
    """
    same_kind = [entry for entry in entries(directory) if entry.key.kind == key.kind]

    def distance(entry: Entry) -> tuple[int, int]:
        differing = key.differing(entry.key)
        return sum(name in ARTIFACT_FIELDS for name in differing), len(differing)

    return min(same_kind, key=distance, default=None)


def remove(entry: Entry) -> Removal:
    """Remove an entry unless it is in use."""
    with locked_if_free(entry.folder.parent, entry.folder.name) as is_free:
        claimed = claim(entry.folder / MANIFEST) if is_free else None
        if claimed is not None:
            try:
                discard(entry.folder)
            finally:
                claimed.release()
    return Removal(entry, is_gone=not entry.folder.exists())


def evict(directory: Path, max_bytes: int) -> list[Removal]:
    """Remove what was used longest ago until the rest fits; entries in use stay, and a log line says so."""
    there = entries(directory)
    total = sum(entry.bytes for entry in there)
    removals = []
    for entry in reversed(there):
        if total <= max_bytes:
            break
        removal = remove(entry)
        if removal.is_gone:
            total -= entry.bytes
            removals.append(removal)
    for removal in removals:
        gone = removal.entry
        _log.warning(
            "evicted the %s engine %s of %s (%.1f MiB) from the cache, which may hold %.1f MiB",
            *(gone.key.kind, gone.key.digest[:12], gone.label or "a model"),
            *(gone.bytes / 2**20, max_bytes / 2**20),
        )
    if total > max_bytes:
        _log.warning(
            "the engine cache holds %.1f MiB where %.1f MiB are allowed: the rest is in use",
            *(total / 2**20, max_bytes / 2**20),
        )
    return removals


def _folders(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if DIGEST.fullmatch(path.name))
    except (FileNotFoundError, NotADirectoryError):
        return []
