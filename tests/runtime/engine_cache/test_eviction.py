"""The engine cache when it is full."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import pytest
from command import assert_one_sentence
from engines import Builder, engine_key, remains, warnings

from cleave.runtime.engine_cache.cache import EngineCache


def use(cache: EngineCache, threads: int, builder: Builder, *, at: int) -> Path:
    """Build an engine, used last at a time given in seconds."""
    with cache.get(engine_key(threads=threads), builder) as engine:
        pass
    os.utime(engine.folder / "entry.json", (at, at))
    return engine.folder


def test_what_was_used_longest_ago_is_evicted_and_said(
    tmp_path: Path, builder: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    cache = EngineCache(tmp_path, max_bytes=3100)
    old, older, newer = (use(cache, n, builder, at=at) for n, at in ((1, 200), (2, 100), (3, 300)))
    with caplog.at_level(logging.WARNING):
        use(cache, 4, builder, at=400)
    assert [path.exists() for path in (old, older, newer)] == [True, False, True]
    (line,) = warnings(caplog)
    assert_one_sentence(line, "evicted the onnxruntime engine", older.name[:12])


def test_opening_counts_as_use(tmp_path: Path, builder: Builder) -> None:
    cache = EngineCache(tmp_path, max_bytes=2100)
    first, second = use(cache, 1, builder, at=100), use(cache, 2, builder, at=200)
    began = time.time()
    cache.get(engine_key(threads=1), builder).close()
    assert cache.entries()[0].last_used >= began - 1
    cache.get(engine_key(threads=3), builder).close()
    assert first.exists()
    assert not second.exists()


def test_what_is_in_use_is_not_evicted(
    tmp_path: Path, builder: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    cache = EngineCache(tmp_path, max_bytes=1500)
    pinned = cache.get(engine_key(threads=1), builder)
    with caplog.at_level(logging.WARNING):
        cache.get(engine_key(threads=2), builder).close()
    assert pinned.folder.exists()
    assert len(cache.entries()) == 2
    assert "in use" in warnings(caplog)[-1]
    pinned.close()
    pinned.close()
    _, removals = cache.gc(0)
    assert len(removals) == 2
    assert cache.entries() == []


def test_what_was_just_built_is_kept_however_large(tmp_path: Path, builder: Builder) -> None:
    cache = EngineCache(tmp_path, max_bytes=0)
    with cache.get(engine_key(), builder) as engine:
        assert engine.folder.exists()
    cache.get(engine_key(threads=8), builder).close()
    assert not engine.folder.exists()


def test_what_is_in_use_is_not_removed(cache: EngineCache, builder: Builder) -> None:
    with cache.get(engine_key(), builder):
        assert [removal.is_gone for removal in cache.remove(cache.entries())] == [False]
    assert [removal.is_gone for removal in cache.remove(cache.entries())] == [True]
    assert remains(cache) == []


def test_gc_removes_what_cannot_be_read_and_nothing_else(cache: EngineCache, builder: Builder) -> None:
    cache.get(engine_key(), builder).close()
    cache.get(engine_key(threads=8), builder).close()
    (cache.directory / engine_key().digest / "entry.json").unlink()
    (cache.directory / "notes.txt").write_text("a user's own", "utf-8")
    assert cache.gc() == (1, [])
    assert remains(cache) == sorted([engine_key(threads=8).digest, "notes.txt"])
