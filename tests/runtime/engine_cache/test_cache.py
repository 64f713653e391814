"""The engine cache in one process: hits, reasons, failures."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import assert_one_sentence, contents
from engines import FIELDS, Builder, engine_key, remains, warnings

from cleave.errors import CacheError
from cleave.runtime.engine_cache import staging
from cleave.runtime.engine_cache.cache import EngineCache

CHANGES: dict[str, Any] = {
    "graph": ("c" * 64, f"graph {'a' * 12} -> {'c' * 12}"),
    "weights": ("c" * 64, f"weights {'b' * 12} -> {'c' * 12}"),
    "kind_version": ("1.31.1", "onnxruntime 1.30.0 -> 1.31.1"),
    "plugin_version": (2, "plugin version 1 -> 2"),
    "device": ("avx2", "device avx512 -> avx2"),
    "dtype": ("float16", "dtype float32 -> float16"),
    "profile": ((("tokens", 1, 8, 128),), "profile [[tokens, 1, 8, 64]] -> [[tokens, 1, 8, 128]]"),
    "flags": (("streaming",), "flags none -> [streaming]"),
    "threads": (8, "threads 2 -> 8"),
}


# Hits and reasons.


def test_the_second_call_builds_nothing(cache: EngineCache, builder: Builder) -> None:
    with cache.get(engine_key(), builder) as first:
        assert first.was_built
        assert first.reason == "no onnxruntime engine is in the cache yet"
    with cache.get(engine_key(), builder) as second:
        assert not second.was_built
        assert second.reason == "cached"
        assert second.folder == first.folder
        assert set(second.files) == {"middle.plan", "deep/notes.json"}
        assert second.files["middle.plan"].read_bytes() == bytes(1000)
    with EngineCache(cache.directory).get(engine_key(), builder, allow_build=False, verify=True):
        assert builder.calls == 1
    assert remains(cache) == [engine_key().digest]


@pytest.mark.parametrize("name", CHANGES)
def test_one_field_changed_is_built_again_and_named_alone(
    cache: EngineCache, builder: Builder, name: str
) -> None:
    assert set(CHANGES) == set(FIELDS) - {"kind"}
    cache.get(engine_key(), builder).close()
    value, expected = CHANGES[name]
    key = engine_key(**{name: value})
    assert cache.why(key) == expected
    with cache.get(key, builder) as built:
        assert built.was_built
        assert built.reason == expected
    assert cache.why(key) == "cached"
    assert cache.why(engine_key()) == "cached"
    assert builder.calls == 2


def test_another_kind_is_no_neighbour(cache: EngineCache, builder: Builder) -> None:
    cache.get(engine_key(), builder).close()
    assert cache.why(engine_key(kind="tensorrt_rtx")) == "no tensorrt_rtx engine is in the cache yet"


def test_the_nearest_entry_is_of_the_same_artifact(cache: EngineCache, builder: Builder) -> None:
    cache.get(engine_key(threads=4, dtype="float16"), builder).close()
    cache.get(engine_key(weights="d" * 64), builder).close()
    assert cache.why(engine_key()) == "dtype float16 -> float32; threads 4 -> 2"


def test_among_equally_near_entries_the_one_used_last_is_told(cache: EngineCache, builder: Builder) -> None:
    for threads in (4, 8, 16):
        cache.get(engine_key(threads=threads), builder).close()
    for entry in cache.entries():
        threads = entry.key.fields["threads"]
        assert isinstance(threads, int)
        at = {8: 300, 4: 200, 16: 100}[threads]
        os.utime(entry.folder / "entry.json", (at, at))
    assert cache.why(engine_key()) == "threads 8 -> 2"


def test_building_that_is_not_allowed_is_refused_with_the_reason(
    cache: EngineCache, builder: Builder
) -> None:
    cache.get(engine_key(), builder).close()
    with pytest.raises(CacheError) as error:
        cache.get(engine_key(threads=8), builder, allow_build=False)
    assert_one_sentence(str(error.value), "the onnxruntime engine is not", "threads 2 -> 8", "cleave build")
    assert builder.calls == 1


# Builds that fail.


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("compiler"), CacheError("no")])
def test_a_build_that_fails_leaves_nothing(
    cache: EngineCache, builder: Builder, error: BaseException
) -> None:
    cache.get(engine_key(), builder).close()
    before = contents(cache.directory / engine_key().digest)

    def build(folder: Path) -> None:
        builder(folder)
        raise error

    with pytest.raises(type(error)):
        cache.get(engine_key(threads=8), build)
    assert remains(cache) == [engine_key().digest]
    assert contents(cache.directory / engine_key().digest) == before
    with cache.get(engine_key(threads=8), builder) as built:
        assert built.was_built


def test_an_interrupt_while_publishing_leaves_nothing(
    cache: EngineCache, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(staging, "sync_folder", interrupted)
        patch.setattr("cleave.runtime.engine_cache.entry.sync_folder", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache.get(engine_key(), builder)
    assert remains(cache) == []


@pytest.mark.parametrize("leave", [[], ["entry.json"], ["checked.json"]])
def test_a_build_that_breaks_the_rules_is_a_bug(cache: EngineCache, leave: list[str]) -> None:
    def build(folder: Path) -> None:
        for name in leave:
            (folder / name).write_text("x", "utf-8")

    with pytest.raises(ValueError, match="build"):
        cache.get(engine_key(), build)
    assert remains(cache) == []


def disk_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_while_building_is_said(cache: EngineCache) -> None:
    with pytest.raises(CacheError) as error:
        cache.get(engine_key(), disk_full)
    assert_one_sentence(str(error.value), "the disk of", str(cache.directory), "full", "nothing")
    assert remains(cache) == []


@pytest.mark.parametrize("where", ["staging.sync_folder", "entry.sync_file", "entry.sync_folder"])
def test_a_disk_that_is_full_while_publishing_is_said(
    cache: EngineCache, builder: Builder, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(f"cleave.runtime.engine_cache.{where}", disk_full)
        with pytest.raises(CacheError, match="full"):
            cache.get(engine_key(), builder)
    if where != "staging.sync_folder":  # that comes after the renaming: the engine is whole
        assert remains(cache) == []
    cache.get(engine_key(), builder).close()
    assert cache.why(engine_key()) == "cached"


def mounted(folder: Path, *options: str) -> bool:
    """Mount a filesystem where that is allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", *options, str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    if not mounted(disk, "-t", "tmpfs", "-o", "size=256k", "tmpfs"):
        pytest.skip("mounting a filesystem is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path, builder: Builder) -> None:
    cache = EngineCache(small_disk / "cache")
    cache.get(engine_key(), builder).close()
    with pytest.raises(CacheError, match="full"):
        cache.get(engine_key(threads=8), Builder(size=1 << 20))
    assert remains(cache) == [engine_key().digest]
    cache.get(engine_key(threads=8), builder).close()
    assert len(cache.entries()) == 2


# A cache that cannot be written.


@pytest.fixture
def read_only(cache: EngineCache, builder: Builder) -> Iterator[EngineCache]:
    """A cache with one entry on a filesystem that cannot be written, not even by root."""
    cache.get(engine_key(), builder).close()
    if not mounted(cache.directory, "--bind", str(cache.directory)):
        pytest.skip("mounting a filesystem is not allowed here")
    try:
        if not mounted(cache.directory, "-o", "remount,bind,ro"):
            pytest.skip("mounting read-only is not allowed here")
        yield cache
    finally:
        subprocess.run(["umount", str(cache.directory)], check=True)


def test_a_read_only_cache_is_used(read_only: EngineCache, builder: Builder) -> None:
    with read_only.get(engine_key(), builder, allow_build=False) as found:
        assert found.reason == "cached"
    assert read_only.why(engine_key(threads=8)) == "threads 2 -> 8"
    assert not read_only.is_writable()
    for change in (read_only.gc, lambda: read_only.remove(read_only.entries())):
        with pytest.raises(CacheError, match="cannot be written"):
            change()


def test_an_engine_that_a_read_only_cache_lacks_is_built_aside_and_said(
    read_only: EngineCache, builder: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        engine = read_only.get(engine_key(threads=8), builder)
    assert engine.was_built
    assert engine.reason == "threads 2 -> 8"
    assert engine.files["middle.plan"].read_bytes() == bytes(1000)
    (line,) = warnings(caplog)
    assert_one_sentence(line, "the engine cache", str(read_only.directory), "not be kept", "CLEAVE_CACHE")
    engine.close()
    assert not engine.folder.exists()


def test_a_build_aside_that_fails_leaves_nothing(read_only: EngineCache) -> None:
    made: list[Path] = []

    def build(folder: Path) -> None:
        made.append(folder)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        read_only.get(engine_key(threads=8), build)
    assert not made[0].exists()


# Where it lies.


def test_the_directory_is_what_is_given_else_the_variable_else_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLEAVE_CACHE", str(tmp_path / "variable"))
    assert EngineCache(tmp_path / "given").directory == tmp_path / "given"
    assert EngineCache().directory == tmp_path / "variable"
    monkeypatch.delenv("CLEAVE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    assert EngineCache().directory.is_relative_to(tmp_path / "user")
    assert list(tmp_path.iterdir()) == [], "nothing is made before it is needed"


def test_the_size_is_what_is_given_else_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEAVE_CACHE_MAX_BYTES", "123")
    assert EngineCache().max_bytes == 123
    assert EngineCache(max_bytes=5).max_bytes == 5
    for text in ("many", "-1", "1.5"):
        monkeypatch.setenv("CLEAVE_CACHE_MAX_BYTES", text)
        with pytest.raises(CacheError, match=r"give"):
            EngineCache()


def test_a_file_where_the_cache_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", "utf-8")
    with pytest.raises(CacheError, match="is a file"):
        EngineCache(tmp_path / "file")
