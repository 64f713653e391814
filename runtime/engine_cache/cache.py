"""The engine cache: engines built once, found by content, shared by all processes of a user."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from cleave.disk import is_disk_full, is_read_only
from cleave.errors import CacheError
from cleave.runtime.engine_cache import contents
from cleave.runtime.engine_cache.directory import DIRECTORY_VARIABLE, cache_directory, cache_max_bytes
from cleave.runtime.engine_cache.engine import CachedEngine
from cleave.runtime.engine_cache.entry import MANIFEST, Entry, read_entry, seal
from cleave.runtime.engine_cache.integrity import damage, note_checked
from cleave.runtime.engine_cache.key import EngineKey
from cleave.runtime.engine_cache.lock import building
from cleave.runtime.engine_cache.pin import pin
from cleave.runtime.engine_cache.staging import publish, staging, sweep

_log = logging.getLogger("cleave")
CACHED = "cached"
Build = Callable[[Path], None]
"""Fills an empty folder with the files of an engine."""
Accept = Callable[[EngineKey], bool]
"""Whether an engine of another key does as well."""


class EngineCache:
    """Built engines in a folder. Opening one writes nothing; any number of processes may share it."""

    def __init__(self, directory: str | Path | None = None, max_bytes: int | None = None) -> None:
        """Nothing is read or written yet. Raises CacheError for a directory or number that cannot be.

        `directory`: None is CLEAVE_CACHE, else the user's cache directory. `max_bytes`: None is
        CLEAVE_CACHE_MAX_BYTES, else 64 GiB; more than that is evicted, used longest ago first.
        """
        self.directory = cache_directory(directory)
        self.max_bytes = cache_max_bytes(max_bytes)

    def get(
        self,
        key: EngineKey,
        build: Build,
        *,
        allow_build: bool = True,
        label: str = "",
        verify: bool = False,
        accept: Accept | None = None,
    ) -> CachedEngine:
        """The engine of a key: the one in the cache, or a new one, which `build` makes in a folder.

        Of many processes that ask at once one builds; the others wait. What `build` raises leaves the
        cache as it was. Where nothing may be written the engine is built in a temporary folder, which is
        gone with `close`. `label` names the model in lists; `verify` reads all files and compares their
        digests; where the key itself is not there, an entry that `accept` takes is used. Raises CacheError
        where there is none and `allow_build` is False, or the disk is full.
        """
        found = self.find(key, verify=verify, accept=accept)
        if found is not None:
            return found
        why = self._why(key, verify=verify)
        if not allow_build:
            raise CacheError(
                f"the {key.kind} engine is not in the cache {self.directory} ({why}) and may not be built; "
                "build it with `cleave build`, or allow building"
            )
        try:
            with self._room_explained(), building(self.directory, key):
                found = self._open(key, verify=verify)  # another process may have built it meanwhile
                return found or self._build(key, build, label, why)
        except OSError as error:
            if not is_read_only(error) or not self._is_inside(error.filename):
                raise
            if self.is_writable():
                raise CacheError(
                    f"{error.filename} in the engine cache cannot be written ({error.strerror}); is it "
                    f"another user's? Remove it, or set {DIRECTORY_VARIABLE} to a folder of your own"
                ) from None
        return self._build_aside(key, build, label, why)

    def find(
        self, key: EngineKey, *, verify: bool = False, accept: Accept | None = None
    ) -> CachedEngine | None:
        """The engine of a key, or one that `accept` takes; None where there is none that is undamaged."""
        opened = (self._open(each, verify=verify) for each in self._candidates(key, accept))
        return next((engine for engine in opened if engine is not None), None)

    def why(self, key: EngineKey, *, accept: Accept | None = None) -> str:
        """Why an engine would be built: what is damaged, or which fields differ from the nearest entry,
        old -> new. "cached" where it would not.
        """
        candidates = self._candidates(key, accept)
        return CACHED if any(self._why(each) == CACHED for each in candidates) else self._why(key)

    def _candidates(self, key: EngineKey, accept: Accept | None) -> Iterator[EngineKey]:
        yield key
        if accept is not None:
            for entry in self.entries():
                if entry.key != key and entry.key.kind == key.kind and accept(entry.key):
                    yield entry.key

    def _why(self, key: EngineKey, *, verify: bool = False) -> str:
        entry = read_entry(self.directory / key.digest)
        if entry is not None:
            damaged = damage(entry, full=verify)
            return CACHED if damaged is None else f"the cached engine is damaged: {damaged}"
        if (self.directory / key.digest).exists():
            return "the cached engine is damaged: its manifest cannot be read"
        near = contents.nearest(self.directory, key)
        if near is None:
            return f"no {key.kind} engine is in the cache yet"
        return key.differences(near.key)

    def entries(self) -> list[Entry]:
        """Every readable entry, the one used last first."""
        return contents.entries(self.directory)

    def damage(self, entry: Entry) -> str | None:
        """What a full check finds wrong with an entry, in a few words: every file is read."""
        return damage(entry, full=True)

    def remove(self, entries: list[Entry]) -> list[contents.Removal]:
        """Remove entries, except those in use. Raises CacheError where nothing may be removed."""
        self.require_writable()
        return [contents.remove(entry) for entry in entries]

    def gc(self, max_bytes: int | None = None) -> tuple[int, list[contents.Removal]]:
        """Remove what killed builders left and what cannot be read, then evict down to `max_bytes`.

        None is the cache's own. Gives back how many leftovers went, and which entries. Raises CacheError
        where nothing may be removed.
        """
        self.require_writable()
        leftovers = sweep(self.directory) + contents.remove_broken(self.directory)
        limit = self.max_bytes if max_bytes is None else cache_max_bytes(max_bytes)
        return leftovers, contents.evict(self.directory, limit)

    def is_writable(self) -> bool:
        """Whether an engine can be published here; makes the folder where it can be made."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.directory):
                return True
        except OSError:
            return False

    def require_writable(self) -> None:
        """Raises CacheError where no engine can be published."""
        if not self.is_writable():
            raise CacheError(
                f"the engine cache {self.directory} cannot be written; "
                f"set {DIRECTORY_VARIABLE} to a folder that can be"
            )

    def _is_inside(self, path: object) -> bool:
        return isinstance(path, str | Path) and Path(path).is_relative_to(self.directory)

    def _open(self, key: EngineKey, *, verify: bool = False) -> CachedEngine | None:
        """The engine of a key, pinned; None where it is not there, or damaged."""
        folder = self.directory / key.digest
        pinned = pin(folder / MANIFEST)
        if pinned is None:
            return None
        try:
            entry = read_entry(folder)
            if entry is None or damage(entry, full=verify) is not None:
                pinned.release()
                return None
            entry.touch()
        except BaseException:
            pinned.release()
            raise
        return _engine(entry, was_built=False, why=CACHED, release=pinned.release)

    def _build(self, key: EngineKey, build: Build, label: str, why: str) -> CachedEngine:
        target = self.directory / key.digest
        with staging(self.directory, key.digest) as folder:
            entry = _built(folder, key, build, label)
            note_checked(entry)
            pinned = pin(folder / MANIFEST)
            if pinned is None:
                raise CacheError(f"{folder} went away during the build; build again")
            try:
                publish(folder, target)
                contents.evict(self.directory, self.max_bytes)  # what was just built is pinned
            except BaseException:
                pinned.release()
                raise
        entry = replace(entry, folder=target)
        return _engine(entry, was_built=True, why=why, release=pinned.release)

    def _build_aside(self, key: EngineKey, build: Build, label: str, why: str) -> CachedEngine:
        """Build where the cache cannot be written: for this process alone."""
        folder = Path(tempfile.mkdtemp(prefix="cleave-engine-"))
        _log.warning(
            "the engine cache %s cannot be written: the %s engine is built in %s and will not be kept; "
            "set %s to a folder that can be written",
            *(self.directory, key.kind, folder, DIRECTORY_VARIABLE),
        )

        def release() -> None:
            shutil.rmtree(folder, ignore_errors=True)

        try:
            with self._room_explained():
                entry = _built(folder, key, build, label)
        except BaseException:
            release()
            raise
        return _engine(entry, was_built=True, why=why, release=release)

    @contextlib.contextmanager
    def _room_explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if is_disk_full(error):
                raise CacheError(
                    f"the disk of the engine cache {self.directory} is full, and nothing of the build was "
                    f"kept; free some space (`cleave engines gc --max_bytes N`), or set {DIRECTORY_VARIABLE}"
                ) from None
            raise


def _built(folder: Path, key: EngineKey, build: Build, label: str) -> Entry:
    began = time.monotonic()
    build(folder)
    seconds = time.monotonic() - began
    return seal(folder, key, label=label, built=time.time(), seconds=seconds)


def _engine(entry: Entry, *, was_built: bool, why: str, release: Callable[[], None]) -> CachedEngine:
    return CachedEngine(
        folder=entry.folder,
        files={name: entry.folder / name for name in entry.files},
        key=entry.key,
        was_built=was_built,
        reason=why,
        seconds=entry.seconds,
        _release=release,
    )
