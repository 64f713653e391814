"""Where the engine cache lies, and how much it may hold."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from cleave.errors import CacheError

DIRECTORY_VARIABLE = "CLEAVE_CACHE"
SIZE_VARIABLE = "CLEAVE_CACHE_MAX_BYTES"
DEFAULT_MAX_BYTES = 64 << 30


def cache_directory(given: str | Path | None = None) -> Path:
    """The folder of the engine cache: what is given, else CLEAVE_CACHE, else the user's cache directory."""
    chosen = given or os.environ.get(DIRECTORY_VARIABLE)
    if not chosen:
        return Path(platformdirs.user_cache_dir("cleave", appauthor=False)) / "engines"
    folder = Path(chosen).expanduser().absolute()
    if folder.exists() and not folder.is_dir():
        raise CacheError(f"the engine cache {folder} is a file; give a folder, or set {DIRECTORY_VARIABLE}")
    return folder


def cache_max_bytes(given: int | None = None) -> int:
    """Bytes that the cache may hold: what is given, else CLEAVE_CACHE_MAX_BYTES, else 64 GiB."""
    if given is None:
        text = os.environ.get(SIZE_VARIABLE)
        if not text:
            return DEFAULT_MAX_BYTES
        try:
            given = int(text)
        except ValueError:
            raise CacheError(f"{SIZE_VARIABLE} is {text!r}; give a whole number of bytes") from None
    if given < 0:
        raise CacheError(f"the engine cache cannot hold {given} bytes; give 0 or more")
    return given
