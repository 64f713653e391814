"""The engine cache in one process: hits, reasons, damage, failures, eviction."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command import assert_one_sentence, contents
from engines import FIELDS, Builder, engine_key

from cleave.errors import CacheError
from cleave.runtime.engine_cache import integrity, staging
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


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")


@pytest.fixture
def builder() -> Builder:
    return Builder()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "cleave"]


def remains(cache: EngineCache) -> list[str]:
    """What is in the cache's folder, without locks."""
    return sorted(path.name for path in cache.directory.iterdir() if path.name != ".locks")


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


# Damage.


def alter(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


def alter_keeping_the_time(path: Path) -> None:
    before = path.stat()
    alter(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "altered": (alter, "middle.plan has another SHA-256"),
    "altered with its old time": (alter_keeping_the_time, "middle.plan has another SHA-256"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "999 bytes instead of 1000"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"x"), "1001 bytes instead of 1000"),
    "gone": (Path.unlink, "middle.plan is missing"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "middle.plan is not a file"),
    "no manifest": (lambda path: (path.parent / "entry.json").unlink(), "manifest cannot be read"),
    "half a manifest": (lambda path: halve(path.parent / "entry.json"), "manifest cannot be read"),
    "another manifest": (lambda path: alter_key(path.parent / "entry.json"), "manifest cannot be read"),
}


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def alter_key(path: Path) -> None:
    path.write_text(path.read_text("utf-8").replace('"threads": 2', '"threads": 4'), "utf-8")


@pytest.mark.parametrize("settled", [False, True], ids=["at once", "after a while"])
@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_engine_is_found_and_built_again(
    cache: EngineCache, builder: Builder, what: str, settled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if settled:  # files look old enough to be trusted by their looks
        monkeypatch.setattr(integrity, "_SETTLED", -1)
    cache.get(engine_key(), builder).close()
    spoil, expected = DAMAGE[what]
    spoil(cache.directory / engine_key().digest / "middle.plan")
    assert expected in cache.why(engine_key())
    with pytest.raises(CacheError, match="damaged"):
        cache.get(engine_key(), builder, allow_build=False)
    with cache.get(engine_key(), builder) as built:
        assert built.was_built
        assert expected in built.reason
        assert built.files["middle.plan"].read_bytes() == bytes(1000)
    assert cache.why(engine_key()) == "cached"
    assert remains(cache) == [engine_key().digest]


def test_what_looks_untouched_is_not_read_again_but_a_full_check_reads_it(
    cache: EngineCache, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrity, "_SETTLED", -1)
    cache.get(engine_key(), builder).close()
    read: list[str] = []
    real = integrity.digest_file

    def counted(path: Path) -> Any:
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(integrity, "digest_file", counted)
    cache.get(engine_key(), builder).close()
    assert read == []
    cache.get(engine_key(), builder, verify=True).close()
    assert sorted(read) == ["middle.plan", "notes.json"]
    os.utime(cache.directory / engine_key().digest / "middle.plan")
    cache.get(engine_key(), builder).close()
    cache.get(engine_key(), builder).close()
    assert sorted(read) == ["middle.plan", "middle.plan", "notes.json"], "once more, and then noted"
    assert builder.calls == 1


def test_a_full_check_finds_what_looks_do_not_show_and_it_is_built_again(
    cache: EngineCache, builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.get(engine_key(), builder).close()
    plan = cache.directory / engine_key().digest / "middle.plan"
    alter(plan)
    monkeypatch.setattr(integrity, "_SETTLED", -1)
    (entry,) = cache.entries()
    integrity.note_checked(entry)  # as where a disk gives back other bytes and the times stay
    assert cache.why(engine_key()) == "cached"
    with cache.get(engine_key(), builder, verify=True) as built:
        assert built.was_built
        assert "another SHA-256" in built.reason


def test_a_manifest_cannot_lead_out_of_its_entry(cache: EngineCache, builder: Builder) -> None:
    cache.get(engine_key(), builder).close()
    manifest = cache.directory / engine_key().digest / "entry.json"
    manifest.write_text(manifest.read_text("utf-8").replace("middle.plan", "../middle.plan"), "utf-8")
    assert "manifest cannot be read" in cache.why(engine_key())


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


# Eviction.


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
