"""The part of an engine kind that builds ahead of time, and how its work gets into the engine cache."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from rich.table import Table

from cleave.export.pieces import Piece
from cleave.runtime.engine_cache.cache import EngineCache
from cleave.runtime.engine_cache.engine import CachedEngine
from cleave.runtime.engine_cache.key import EngineKey

_log = logging.getLogger("cleave")
BuildProgress = Callable[[str, int, int], None]
"""Called with the name of what is built, the steps done and the steps in all."""


class EngineBuilder(Protocol):
    """Builds the engine of one artifact, for one set of options.

    Making a builder checks everything that can be checked before the build; it reads no weights where the
    engine does not depend on them.
    """

    is_optional: bool
    """The engine runs without it too: `cleave build` alone builds it, and it is used where it is there."""

    @property
    def key(self) -> EngineKey:
        """Everything that the build depends on."""

    def serves(self, key: EngineKey) -> bool:
        """Whether an engine of another key does as well: one for more devices, or for larger steps."""

    def build(self, folder: Path, progress: BuildProgress | None) -> None:
        """Build into an empty folder. What is raised, `progress` and Ctrl-C included, ends the build."""

    def table(self, folder: Path) -> Table:
        """What a build left in a folder: pieces, bytes, seconds, profiles."""


def get_engine(
    builder: EngineBuilder,
    cache: EngineCache,
    *,
    label: str,
    allow_build: bool = True,
    progress: BuildProgress | None = None,
) -> CachedEngine:
    """The builder's engine out of the cache, built where it is not there.

    Raises CacheError, with the reason, where it is not there and `allow_build` is False.
    """

    def build(folder: Path) -> None:
        builder.build(folder, progress)

    found = cache.find(builder.key, accept=builder.serves)
    if found is not None:
        return found
    if allow_build:
        _log.warning("building the %s engine (%s)", builder.key.kind, cache.why(builder.key))
    return cache.get(builder.key, build, allow_build=allow_build, label=label)


def graph_digest(pieces: Iterable[Piece]) -> str:
    """SHA-256 of the distinct graphs of pieces, for a key's field `graph`; no weights are read.

    Pieces that share a graph count once, so it does not depend on the number of layers.
    """
    digest = hashlib.sha256()
    for model in {id(piece.model): piece.model for piece in pieces}.values():
        digest.update(hashlib.sha256(model.SerializeToString(deterministic=True)).digest())
    return digest.hexdigest()
