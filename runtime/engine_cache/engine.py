"""What the engine cache hands out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from cleave.runtime.engine_cache.key import EngineKey


@dataclass(frozen=True, slots=True)
class CachedEngine:
    """The files of a built engine. While it is open no eviction takes them.

    Close it when they are loaded, or, where the engine keeps them mapped, with the engine.
    """

    folder: Path
    files: Mapping[str, Path]
    """Path inside the folder, with slashes -> the file."""
    key: EngineKey
    was_built: bool
    """Built by this call; else it was there, or another process built it in the meantime."""
    reason: str
    """"cached", or why it was built: which fields differ from the nearest entry, old -> new."""
    seconds: float
    """How long the build took, whenever that was."""
    _release: Callable[[], None] = field(repr=False)

    def close(self) -> None:
        """Let the entry be evicted from now on. Doing it again does nothing."""
        self._release()

    def __enter__(self) -> CachedEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
