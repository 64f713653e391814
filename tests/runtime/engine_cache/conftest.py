"""An engine cache of a test's own, and what builds into it."""

from __future__ import annotations

from pathlib import Path

import pytest
from engines import Builder

from cleave.runtime.engine_cache.cache import EngineCache


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")


@pytest.fixture
def builder() -> Builder:
    return Builder()
