"""The engine cache and files that are not what they were."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engines import Builder, engine_key, remains

from cleave.errors import CacheError
from cleave.runtime.engine_cache import integrity
from cleave.runtime.engine_cache.cache import EngineCache


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
